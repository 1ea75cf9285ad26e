"""From a teacher's folder to a student's: which teachers are carried, their weights, the starting values."""
