"""Several processes on one study: placed, listened to, ended together. What each of them does is `search` alone."""
