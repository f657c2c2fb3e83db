"""The story of each verb, from arguments to results: build, train, cross-validate, evaluate, compare, search."""
