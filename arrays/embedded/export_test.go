package embedded

// RaceEnabled is for the tests that are not in the package.
const RaceEnabled = raceEnabled
