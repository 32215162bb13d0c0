"""Pure scheduling decisions: values in, decisions out, time is an argument."""
