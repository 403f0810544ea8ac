"""Who is compared, in which order, what makes a timing void, and what comes out."""
