"""All for One: waiting, peeking, and the search for both."""
