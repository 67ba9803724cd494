"""From scenes to goals: what is asked of a language model, its answers, and the tables on the device."""
