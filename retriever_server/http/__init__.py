"""HTTP: the process, its WSGI server, the Flask application and the wire formats."""
