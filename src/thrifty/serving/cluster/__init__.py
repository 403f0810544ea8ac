"""One server over many machines: replicas and their placement are Ray Serve's, the front and the router are ours."""
