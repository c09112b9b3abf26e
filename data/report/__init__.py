"""What people look at: model cards and charts, made from the files a run has written. Imports the ground floor only."""
