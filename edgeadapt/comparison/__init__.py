"""Methods side by side: what each costs, and what it is good for, on each device."""
