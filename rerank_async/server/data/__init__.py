"""The lexical engine's IDF table, its licence notice, and the script that generates both."""
