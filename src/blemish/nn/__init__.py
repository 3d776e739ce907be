"""Network parts that two or more models share."""
