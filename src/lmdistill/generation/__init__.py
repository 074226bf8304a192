"""Black-box data: a teacher behind an API writes, its text is verified and filtered, and the student learns from it."""
