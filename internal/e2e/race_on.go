//go:build race

package e2e

// raceFlag builds the server under test as the tests are built.
const raceFlag = "-race"
