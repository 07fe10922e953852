"""What is written: the one home of SQL. One function per question; executing is database.py's work."""
