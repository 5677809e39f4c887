// Package settings reads the settings of the server from environment variables and the file .env.
package settings

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/joho/godotenv"

	"proofofstake/internal/console"
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
	MaxClients      int           // connections at a time, and proposals in a round; 0 means no limit of connections
	MaxPerAddress   int           // the same, from one network address; 0 means no limit
}

// MaxProposals returns how many proposals a round may have.
func (s Settings) MaxProposals() int { return min(cmp.Or(s.MaxClients, 1_000_000), 1_000_000) }

// setting is what a user should know of a setting.
type setting struct{ name, def, meaning string }

// table returns all settings. A line of Usage has room for 47 columns of meaning.
func table() []setting {
	return []setting{
		{"ADDR", "9000", "a port on all interfaces, or host:port"},
		{"ROUND", "30s", "length of a round, at least 1ms"},
		{"BROADCAST", "1m", "how often each client gets the newest blocks"},
		{"BROADCAST_BLOCKS", "5", "how many blocks it gets; 0 means all"},
		{"CHAIN_FILE", "chain.jsonl", "file of the chain; empty means in memory only"},
		{"DRAWS_FILE", "draws.jsonl", "file of the draws; empty means nowhere"},
		{"MAX_STAKE", "9223372036854775807", "the most tokens that a validator may stake"},
		{"MAX_CLIENTS", "10000", "clients at a time; 0 means no limit"},
		{"MAX_PER_ADDRESS", "1000", "the same, from one address; 0 means no limit"},
	}
}

// names returns the names of all settings.
func names() (names []string) {
	for _, s := range table() {
		names = append(names, s.name)
	}
	return names
}

// Usage returns a line for each setting, with its default and meaning, and a title.
func Usage() string {
	lines := "\nsettings, as environment variables or in the file .env, with their defaults:\n"
	for _, s := range table() {
		lines += fmt.Sprintf("  %-29s  %s\n", s.name+"="+s.def, s.meaning)
	}
	return lines
}

// ReadDotEnv adds the settings in the file .env, if any, to the environment. A variable that is already there wins.
// Names in .env that are not settings only cause a warning.
func ReadDotEnv(warnings io.Writer) error {
	text, err := os.ReadFile(".env")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a missing file counts as empty
		return fmt.Errorf(".env: %w; make it a text file that the server may read, or remove it", errors.Unwrap(err))
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))       // the byte order mark that some editors write
	if !utf8.Valid(text) || bytes.ContainsRune(text, 0) { // half of the bytes of English text in UTF-16 are 0
		return errors.New(".env: not UTF-8; save it as UTF-8")
	}
	values, err := godotenv.UnmarshalBytes(append(text, '\n')) // it would accept a last line that is only a name
	if err != nil {
		// The error ends with a value from its opening quote on, or with the rest of the file in quotes.
		line, want := strings.TrimPrefix(err.Error(), "unterminated quoted value "), "a closing quote"
		_, rest, _ := strings.Cut(line, " near ")
		if rest, err := strconv.Unquote(rest); err == nil {
			line, _, _ = strings.Cut(rest, "\n")
			want = "a setting, such as ROUND=30s"
		}
		return fmt.Errorf(".env: invalid line %s: want %s", quote(line), want)
	}
	var unknown []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(names(), name) {
			unknown = append(unknown, strings.Trim(quote(name), `"`))
		} else if _, ok := os.LookupEnv(name); !ok {
			os.Setenv(name, values[name])
		}
	}
	if unknown != nil {
		fmt.Fprintf(warnings, ".env: no setting is called %s; the settings are %s\n",
			strings.Join(unknown[:min(len(unknown), 5)], " or "), strings.Join(names(), ", "))
	}
	return nil
}

// quote returns what a user typed in quotes and in ASCII, as one short line.
func quote(typed string) string { return console.Quote(typed, 40) }

// FilesToVerify returns the files that the command "verify [CHAIN [DRAWS]]" checks: the arguments or else the settings.
// The draws file of the settings may be missing, because it may be moved or deleted. Then it counts as empty.
func FilesToVerify(args []string) (chain, draws string) {
	chain, draws = Value("CHAIN_FILE"), Value("DRAWS_FILE")
	switch _, err := os.Stat(draws); {
	case len(args) == 2:
		return args[0], args[1]
	case len(args) == 1 && args[0] != chain:
		fmt.Fprintln(os.Stderr, "draws not checked: name their file too (verify CHAIN DRAWS)")
		return args[0], ""
	case draws != "" && errors.Is(err, fs.ErrNotExist):
		return chain, os.DevNull
	}
	return chain, draws
}

// ChainPath returns the absolute path of the chain file, or "in memory".
func (s Settings) ChainPath() string {
	if s.ChainFile == "" {
		return "in memory"
	}
	path, _ := filepath.Abs(s.ChainFile)
	return path
}

// Load reads the settings from the environment. Its error names the first invalid variable, and says what is valid.
func Load() (Settings, error) {
	var r reader
	s := Settings{
		Addr:            r.addr("ADDR"),
		Round:           r.duration("ROUND"),
		Broadcast:       r.duration("BROADCAST"),
		BroadcastBlocks: r.count("BROADCAST_BLOCKS"),
		ChainFile:       r.file("CHAIN_FILE"),
		DrawsFile:       r.file("DRAWS_FILE"),
		MaxStake:        r.number("MAX_STAKE", 1, math.MaxInt64, "digits only, such as 1000"),
		MaxClients:      r.count("MAX_CLIENTS"),
		MaxPerAddress:   r.count("MAX_PER_ADDRESS"),
	}
	if s.ChainFile == "" {
		s.DrawsFile = "" // without a chain, the draws prove nothing
	} else {
		r.check("DRAWS_FILE", !isSameFile(s.ChainFile, s.DrawsFile), "another file than CHAIN_FILE")
	}
	return s, r.err
}

// Value returns the value of a variable, or its default if it is not set. An empty value is a value.
func Value(name string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return table()[slices.Index(names(), name)].def
}

// reader reads one variable after another. err is the first error.
type reader struct{ err error }

// check records an error, unless the value of the variable is valid or there was an error before.
func (r *reader) check(name string, valid bool, want string) {
	if !valid && r.err == nil {
		r.err = fmt.Errorf("invalid %s=%s: want %s", name, quote(Value(name)), want)
	}
}

func (r *reader) duration(name string) time.Duration {
	value := Value(name)
	d, err := time.ParseDuration(value)
	_, formErr := time.ParseDuration(regexp.MustCompile("[0-9]").ReplaceAllString(value, "0"))
	r.check(name, err == nil || formErr != nil, "at most 2562047h") // with zeros for digits, it would be valid
	r.check(name, err == nil, "a duration with a unit, such as 30s")
	r.check(name, d >= time.Millisecond, "at least 1ms")
	return d
}

// count reads a number that fits in an int on every system.
func (r *reader) count(name string) int {
	return int(r.number(name, 0, 1<<30, "digits only, such as 50; 0 means no limit"))
}

// number reads a number from lo to hi.
func (r *reader) number(name string, lo, hi int64, want string) int64 {
	n, err := strconv.ParseInt(Value(name), 10, 64) // out of range, n is the nearest int64
	r.check(name, !errors.Is(err, strconv.ErrSyntax), want)
	r.check(name, n >= lo, fmt.Sprint("at least ", lo))
	r.check(name, n <= hi && err == nil, fmt.Sprint("at most ", hi))
	return n
}

// addr reads a port or host:port.
func (r *reader) addr(name string) string {
	value := Value(name)
	addr := value
	if !strings.Contains(addr, ":") {
		addr = ":" + addr
	}
	_, port, err := net.SplitHostPort(addr)
	_, portErr := strconv.ParseUint(port, 10, 16)
	isOdd := func(c rune) bool { return c <= ' ' || c > '~' }
	r.check(name, !strings.Contains(value, "/"), "host:port without slashes, such as localhost:9000")
	r.check(name, err == nil, "brackets and a port, such as [::1]:9000")
	r.check(name, !errors.Is(portErr, strconv.ErrRange), "a port of at most 65535, such as 9000")
	r.check(name, portErr == nil && !strings.ContainsFunc(value, isOdd), "a port, such as 9000, or host:port")
	return addr
}

// file reads the name of a file, or an empty value. It rejects "# in memory", which is what godotenv makes of a comment
// that follows an empty value, and C:a.jsonl, which is what it makes of "C:\a.jsonl" in double quotes.
func (r *reader) file(name string) string {
	value := Value(name)
	isPath := filepath.VolumeName(value) == "" || filepath.IsAbs(value)
	r.check(name, isPath, `a path such as C:\a.jsonl, in .env without double quotes`)
	r.check(name, !strings.ContainsFunc(value, unicode.IsControl), "a name without control characters, such as a.jsonl")
	r.check(name, !strings.HasPrefix(value, "#"), "a name, or the comment on its own line")
	r.check(name, !strings.HasPrefix(value, " "), "a name without a space before it, such as a.jsonl")
	return value
}

// isSameFile reports whether two names stand for one file, even if it does not exist yet.
func isSameFile(a, b string) bool {
	aInfo, aName := locate(a)
	bInfo, bName := locate(b)
	ignoresCase := runtime.GOOS == "windows" || runtime.GOOS == "darwin" // as a rule
	return os.SameFile(aInfo, bInfo) && (aName == bName || ignoresCase && strings.EqualFold(aName, bName))
}

// locate returns a file and no name, or if it does not exist, the directory and the name of the file that opening it
// creates. A symbolic link is followed.
func locate(name string) (fs.FileInfo, string) {
	if info, err := os.Stat(name); err == nil {
		return info, ""
	}
	dir, base := filepath.Split(name)
	if link, err := os.Readlink(name); err == nil && filepath.IsAbs(link) {
		dir, base = filepath.Split(link)
	} else if err == nil {
		dir, base = filepath.Split(dir + link)
	}
	info, _ := os.Stat(cmp.Or(dir, "."))
	return info, base
}

// AddrError returns err, which says why the server cannot listen on ADDR, with advice on its cause.
func AddrError(err error) error {
	advice := "set ADDR to an address of this machine, or to a port alone for all of them"
	var code syscall.Errno // 0 if the host name is unknown
	errors.As(err, &code)
	switch code { // Windows has numbers of its own for an address in use, and for one that is reserved
	case syscall.EADDRINUSE, 10048, 10013:
		advice = "another server may be running: stop it, or set ADDR to another port"
	case syscall.EACCES:
		advice = "ports below 1024 need root; set ADDR to 1024 or above"
	}
	return fmt.Errorf("ADDR=%s: %w; %s", quote(Value("ADDR")), err, advice)
}
