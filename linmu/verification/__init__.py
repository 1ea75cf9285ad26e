"""The levels of `linmu verify`: comparisons, players (whatever yields logits and states step by step), levels."""
