package settings

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// names are the variables, in the order in which Load reads them.
const names = "ADDR ROUND BROADCAST BROADCAST_BLOCKS CHAIN_FILE DRAWS_FILE MAX_STAKE MAX_CLIENTS MAX_PER_ADDRESS"

// load sets the variables to values, in the same order, and loads the settings. The value - means not set.
func load(t *testing.T, values []string) (Settings, error) {
	for i, name := range strings.Fields(names) {
		if t.Setenv(name, values[i]); values[i] == "-" {
			os.Unsetenv(name)
		}
	}
	return Load()
}

// The file .env is tested in package e2e.
func TestLoad(t *testing.T) {
	for values, want := range map[string]string{
		"- - - - - - - - -":             "{:9000 30s 1m0s 10 chain.jsonl draws.jsonl 9223372036854775807 10000 1000} 10000",
		"10.0.0.1:0 1ms 2h 0 a b 9 0 0": "{10.0.0.1:0 1ms 2h0m0s 0 a b 9 0 0} 1000000",
		"[::1]:80 1h 1ms 7  - 1 1 3":    "{[::1]:80 1h0m0s 1ms 7   1 1 3} 1",
		"h:1 1h 1s 7 a  1 1073741824 3": "{h:1 1h0m0s 1s 7 a  1 1073741824 3} 1000000",
		"- - - - - - 5 1000001 -":       "{:9000 30s 1m0s 10 chain.jsonl draws.jsonl 5 1000001 1000} 1000000",
	} {
		if got, err := load(t, strings.Split(values, " ")); err != nil || fmt.Sprint(got, got.MaxProposals()) != want {
			t.Errorf("%q: got %v, %v, want %s", values, got, err, want)
		}
	}
	for i, invalid := range [][]string{
		{"x", "", "70000", "-1", "localhost", "localhost:http", "1:2:3"}, {"0", "0s", "-1s", "abc", "30", "999us", ""},
		{"0", "1 m"}, {"-1", "all", "1.5", "1073741825", ""}, {}, {}, {"0", "-1", "9223372036854775808", "many"},
		{"-1", "1e4"}, {"-1", "x"},
	} {
		for _, value := range invalid { // the first error counts
			_, err := load(t, slices.Concat(slices.Repeat([]string{"-"}, i), []string{value}, slices.Repeat([]string{"x"}, 9)))
			want := fmt.Sprintf("invalid %s=%q: want a", strings.Fields(names)[i], value)
			if got := fmt.Sprint(err); !strings.HasPrefix(got, want) || strings.Contains(got, "\n") {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}
