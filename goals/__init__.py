"""From scenes to goals: what a language model is asked, its answers, the tables on the device."""
