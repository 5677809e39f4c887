// Package settings reads the settings of the server from environment variables and the file .env.
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/joho/godotenv"
)

// Settings are what a user can change; README.md explains them.
type Settings struct {
	Addr            string        // host:port to listen on; no host means all interfaces
	Round           time.Duration // at least 1 ms
	Broadcast       time.Duration // at least 1 ms
	BroadcastBlocks int           // the number of blocks in a broadcast; 0 means all
	ChainFile       string        // where the chain is saved; empty means in memory only
	DrawsFile       string        // where the draws are saved; empty means nowhere
	MaxStake        int64         // tokens
	MaxClients      int           // connections at a time, and proposals in a round; 0 means no limit, and 1,000,000
	MaxPerAddress   int           // the same, from one network address; 0 means no limit
}

// MaxProposals returns how many proposals a round may have.
func (s Settings) MaxProposals() int { return min(cmp.Or(s.MaxClients, 1_000_000), 1_000_000) }

// ReadDotEnv adds the variables of the file .env, if any, to the environment. A variable that is already there wins.
func ReadDotEnv() error {
	if err := godotenv.Load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf(".env: %w", err)
	}
	return nil
}

// ChainFile returns the setting CHAIN_FILE.
func ChainFile() string { return valueOr("CHAIN_FILE", "chain.jsonl") }

// DrawsFile returns the setting DRAWS_FILE.
func DrawsFile() string { return valueOr("DRAWS_FILE", "draws.jsonl") }

// Load reads the settings from the environment. Its error names the first invalid variable, and says what is valid.
func Load() (Settings, error) {
	var r reader
	s := Settings{
		Addr:            r.addr("ADDR", "9000"),
		Round:           r.duration("ROUND", "30s"),
		Broadcast:       r.duration("BROADCAST", "1m"),
		BroadcastBlocks: r.count("BROADCAST_BLOCKS", "10", "a number of blocks, or 0 for the whole chain"),
		ChainFile:       ChainFile(),
		DrawsFile:       DrawsFile(),
		MaxStake:        r.stake("MAX_STAKE", "9223372036854775807"),
		MaxClients:      r.count("MAX_CLIENTS", "10000", "a number of clients, or 0 for as many as the system allows"),
		MaxPerAddress:   r.count("MAX_PER_ADDRESS", "1000", "a number of clients, or 0 for no limit"),
	}
	if s.ChainFile == "" {
		s.DrawsFile = "" // without a chain, the draws prove nothing
	}
	return s, r.err
}

// valueOr returns the value of a variable, or def if it is not set. An empty value is a value.
func valueOr(name, def string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return def
}

// reader reads one variable after another. err is the first error.
type reader struct{ err error }

// check records an error, unless the value is valid or there was an error before.
func (r *reader) check(valid bool, name, value, want string) {
	if !valid && r.err == nil {
		r.err = fmt.Errorf("invalid %s=%q: want %s", name, value, want)
	}
}

func (r *reader) duration(name, def string) time.Duration {
	value := valueOr(name, def)
	d, err := time.ParseDuration(value)
	r.check(err == nil && d >= time.Millisecond, name, value, "a duration of at least 1ms, such as "+def)
	return d
}

func (r *reader) stake(name, def string) int64 {
	value := valueOr(name, def)
	i, err := strconv.ParseInt(value, 10, 64)
	r.check(err == nil && i >= 1, name, value, "a whole number of at least 1, such as 1000")
	return i
}

// count reads a number from 0 to 1<<30, which fits in an int on every system.
func (r *reader) count(name, def, want string) int {
	value := valueOr(name, def)
	i, err := strconv.Atoi(value)
	r.check(err == nil && 0 <= i && i <= 1<<30, name, value, want)
	return i
}

// addr reads a port or host:port.
func (r *reader) addr(name, def string) string {
	value := valueOr(name, def)
	addr := value
	if !strings.Contains(addr, ":") {
		addr = ":" + addr
	}
	_, port, _ := net.SplitHostPort(addr) // empty if there is none, which is not a number
	_, err := strconv.ParseUint(port, 10, 16)
	r.check(err == nil, name, value, "a port, such as 9000, or host:port, such as 127.0.0.1:9000")
	return addr
}
