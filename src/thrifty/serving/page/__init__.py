"""The page at /: plain HTML, CSS and JavaScript, without a build step and without the network."""
