"""Places that pretrained networks come from."""
