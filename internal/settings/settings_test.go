package settings

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// load loads the settings from an environment with these values, in the order of the names. "-" is not set.
func load(t *testing.T, values ...string) (Settings, error) {
	for i, name := range names() {
		if t.Setenv(name, ""); i < len(values) && values[i] != "-" {
			os.Setenv(name, values[i])
		} else {
			os.Unsetenv(name)
		}
	}
	return Load()
}

func names() []string {
	return strings.Fields("ADDR ROUND BROADCAST BROADCAST_BLOCKS CHAIN_FILE DRAWS_FILE MAX_STAKE MAX_CLIENTS MAX_PER_ADDRESS")
}

func TestLoad(t *testing.T) {
	for values, want := range map[string]Settings{
		"-": {Addr: ":9000", Round: 30 * time.Second, Broadcast: time.Minute, BroadcastBlocks: 10,
			ChainFile: "chain.jsonl", DrawsFile: "draws.jsonl", MaxStake: math.MaxInt64, MaxClients: 10000, MaxPerAddress: 1000},
		"127.0.0.1:0 1ms 2h 0 a b 9 0 0": {Addr: "127.0.0.1:0", Round: time.Millisecond, Broadcast: 2 * time.Hour,
			ChainFile: "a", DrawsFile: "b", MaxStake: 9},
		"[::1]:80 1h 1ms 7  - 1 2 3": {Addr: "[::1]:80", Round: time.Hour, Broadcast: time.Millisecond, BroadcastBlocks: 7,
			MaxStake: 1, MaxClients: 2, MaxPerAddress: 3},
		"host:1 1h 1s 7 a  1 2 3": {Addr: "host:1", Round: time.Hour, Broadcast: time.Second, BroadcastBlocks: 7,
			ChainFile: "a", MaxStake: 1, MaxClients: 2, MaxPerAddress: 3},
	} {
		if got, err := load(t, strings.Split(values, " ")...); err != nil || got != want {
			t.Errorf("%s: %+v, %v", values, got, err)
		}
	}
	for i, invalid := range [][]string{
		{"x", "", "70000", "-1", "localhost", "localhost:http", "1:2:3"}, {"0", "0s", "-1s", "abc", "30", "999us", ""},
		{"0", "1 m"}, {"-1", "all", "1.5", ""}, {}, {}, {"0", "-1", "9223372036854775808", "many"}, {"-1", "1e4"}, {"-1", "x"},
	} {
		for _, value := range invalid { // the first error counts
			_, err := load(t, append(slices.Repeat([]string{"-"}, i), value, "x", "x")...)
			want := fmt.Sprintf("invalid %s=%q: want a", names()[i], value)
			if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %s", err, want)
			}
		}
	}
}

func TestMaxProposals(t *testing.T) {
	for clients, want := range map[int]int{0: 1_000_000, 1: 1, 1_000_000: 1_000_000, 1_000_001: 1_000_000} {
		if got := (Settings{MaxClients: clients}).MaxProposals(); got != want {
			t.Errorf("with %d clients, a round may have %d proposals, want %d", clients, got, want)
		}
	}
}

// TestReadDotEnv checks that the environment wins, that a missing file is not an error, and that an invalid one is.
func TestReadDotEnv(t *testing.T) {
	t.Chdir(t.TempDir())
	load(t, "-", "1s")
	missing := ReadDotEnv()
	write := os.WriteFile(".env", []byte("ROUND=2s\nADDR=7\n"), 0o644)
	if err := errors.Join(missing, write, ReadDotEnv()); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(); err != nil || s.Round != time.Second || s.Addr != ":7" {
		t.Errorf("got %+v, %v", s, err)
	}
	write = os.WriteFile(".env", []byte("not a setting\n"), 0o644)
	if err := ReadDotEnv(); write != nil || err == nil || !strings.HasPrefix(err.Error(), ".env: ") {
		t.Errorf("the error is %v", err)
	}
}
