"""`manage.py doctor`: looks at a set-up from outside and inside, changes nothing, and names the repair."""
