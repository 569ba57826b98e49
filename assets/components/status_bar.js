// status_bar
