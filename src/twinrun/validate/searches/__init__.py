"""What is looked for in the data: wrong labels, shortcuts, drift, poor quality, leaks, clips."""
