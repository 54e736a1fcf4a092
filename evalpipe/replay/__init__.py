"""Replay: logged requests sent to an arm that did not answer them, or once more to control."""
