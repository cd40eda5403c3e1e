"""Many runs that answer one question: what to run, what is missing, what it will cost."""
