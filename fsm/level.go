package fsm

// Level says what this program knows of commands, and of what they leave in the state.
const Level = 1
