"""The explorer: a web page that shows the effect of each code."""
