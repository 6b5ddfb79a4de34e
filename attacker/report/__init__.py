"""From scores to one page that a person can read: it draws and words what others have computed."""
