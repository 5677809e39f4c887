package settings

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// unset removes all settings from the environment until the end of the test.
func unset(t *testing.T) {
	for _, name := range names() {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
}

func TestLoad(t *testing.T) {
	for values, want := range map[string]string{ // in the order of the table; - means not set
		"- - - - - - - - -":           "{:9000 30s 1m0s 5 chain.jsonl draws.jsonl 9223372036854775807 10000 1000} 10000 true",
		"h:0 1ms 2h 0 a b 9 0 0":      "{h:0 1ms 2h0m0s 0 a b 9 0 0} 1000000 true",
		"[::1]:80 1h 1ms 7  - 1 1 3":  "{[::1]:80 1h0m0s 1ms 7   1 1 3} 1 false",
		":1 1h 1s 7   1 1073741824 3": "{:1 1h0m0s 1s 7   1 1073741824 3} 1000000 false",
		"- - - - - - 5 1000001 -":     "{:9000 30s 1m0s 5 chain.jsonl draws.jsonl 5 1000001 1000} 1000000 true",
	} {
		unset(t)
		for i, value := range strings.Split(values, " ") {
			if value != "-" {
				os.Setenv(names()[i], value)
			}
		}
		if got, err := Load(); err != nil || fmt.Sprint(got, got.MaxProposals(), got.ChainPath() != "in memory") != want {
			t.Errorf("%q: got %v, %v, want %s", values, got, err, want)
		}
	}
}

// TestDotEnv checks what a user is told about each mistake in a file .env, or how that ends.
func TestDotEnv(t *testing.T) {
	const settings = "; the settings are ADDR, ROUND, BROADCAST, BROADCAST_BLOCKS, CHAIN_FILE, DRAWS_FILE, MAX_STAKE, " +
		"MAX_CLIENTS, MAX_PER_ADDRESS\n"
	table := map[string][]string{
		"want a port, such as 9000, or host:port": {
			"ADDR=", "ADDR=localhost", "ADDR=-1", "ADDR=h:http", "ADDR='a b:1'", "ADDR=é:1"},
		"want a port of at most 65535, such as 9000":             {"ADDR=70000", "ADDR=h:65536"},
		"want host:port without slashes, such as localhost:9000": {"ADDR=http://h:9000", "ADDR=http://h"},
		"want brackets and a port, such as [::1]:9000":           {"ADDR=::1", "ADDR=fe80::1:9000", "ADDR=[::1]"},
		"want a duration with a unit, such as 30s":               {"ROUND=30", "ROUND=", "BROADCAST=1 m", "ROUND=“30s”"},
		"want at least 1ms":                                      {"ROUND=0", "BROADCAST=999us", "ROUND=-1s"},
		"want at most 2562047h":                                  {"ROUND=9999999h1s"},
		"want digits only, such as 50; 0 means no limit": {
			"BROADCAST_BLOCKS=all", "MAX_CLIENTS=10,000", "MAX_CLIENTS=1e3", "MAX_PER_ADDRESS=' 1 '"},
		"want digits only, such as 1000":   {"MAX_STAKE=1.5", "MAX_STAKE="},
		"want at least 0":                  {"BROADCAST_BLOCKS=-1"},
		"want at least 1":                  {"MAX_STAKE=0", "MAX_STAKE=-99999999999999999999"},
		"want at most 1073741824":          {"MAX_CLIENTS=1073741825", "MAX_PER_ADDRESS=9999999999"},
		"want at most 9223372036854775807": {"MAX_STAKE=99999999999999999999"},
		`"# in memory": want a name, or the comment on its own line`:    {"CHAIN_FILE=  # in memory"},
		"want a name without control characters, such as a.jsonl":       {"DRAWS_FILE='a\tb'", `CHAIN_FILE="a\new"`},
		`=" a": want a name without a space before it, such as a.jsonl`: {"CHAIN_FILE=' a'"},
		`DRAWS_FILE="chain.jsonl": want another file than CHAIN_FILE`:   {"DRAWS_FILE=chain.jsonl"},

		".env: no setting is called PORT" + settings:                             {"PORT=1"},
		".env: no setting is called ROND or addr" + settings:                     {"addr=1\nROND: 3\nROUND=1s"},
		".env: no setting is called a or b or c or d or e" + settings:            {"a=\nb=\nc=\nd=\ne=\nf="},
		`.env: invalid line "ROUND 30s": want a setting, such as ROUND=30s`:      {"ROUND=1s\nROUND 30s"},
		`.env: invalid line "A-B=\u00e9\x1b": want a setting, such as ROUND=30s`: {"A-B=é\x1b\n\n"},
		`.env: invalid line "\"30s": want a closing quote`:                       {"ROUND=\"30s\nADDR=1"},
		`.env: invalid line "'a near b": want a closing quote`:                   {"A='a near b"},
		".env: not UTF-8; save it as UTF-8":                                      {"\xff\xfeA\x00", "A\x00=\x00", "A=\xfc"},
	}
	if runtime.GOOS == "windows" {
		table[`="C:a": want a path such as C:\a.jsonl, in .env without double quotes`] = []string{`CHAIN_FILE="C:\a"`}
		table["want another file than CHAIN_FILE"] = []string{"DRAWS_FILE=c:\\a # x\r\nCHAIN_FILE='C:\\A'"}
	}
	for want, texts := range table {
		for _, text := range texts {
			t.Run(text, func(t *testing.T) {
				unset(t)
				t.Chdir(t.TempDir())
				os.WriteFile(".env", []byte(text), 0o600)
				var warning strings.Builder
				err := ReadDotEnv(&warning)
				if err == nil {
					_, err = Load()
				}
				got := strings.TrimSuffix(warning.String()+fmt.Sprint(err), "<nil>")
				name, _, _ := strings.Cut(text, "=")
				if !strings.HasSuffix(got, want) || got != want && !strings.HasPrefix(got, "invalid "+name+"=") {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			})
		}
	}
}

// A file .env sets what the environment does not, and must be readable.
func TestReadDotEnv(t *testing.T) {
	unset(t)
	t.Chdir(t.TempDir())
	os.WriteFile(".env", []byte("\ufeffADDR=1 #\r\nexport ROUND='2s'\nROUND=3s\nMAX_STAKE=9\nTZ=\nDRAWS_FILE="), 0o600)
	os.Setenv("MAX_STAKE", "8")
	if err := ReadDotEnv(io.Discard); err != nil || Value("ADDR")+Value("ROUND")+Value("MAX_STAKE") != "13s8" {
		t.Errorf("error %v, environment %q", err, os.Environ())
	}
	if chain, draws := FilesToVerify(nil); chain != "chain.jsonl" || draws != "" {
		t.Errorf("verify checks %q and %q", chain, draws)
	}
	os.Remove(".env")
	os.Mkdir(".env", 0o700)
	if err := fmt.Sprint(ReadDotEnv(io.Discard)); !strings.HasPrefix(err, ".env: ") || strings.Contains(err, "read .env") {
		t.Errorf("a directory: got %s", err)
	}
}

func TestIsSameFile(t *testing.T) {
	t.Chdir(t.TempDir())
	os.WriteFile("old", nil, 0o600)
	os.MkdirAll("dir/sub", 0o700)
	abs, _ := filepath.Abs("new")
	err := os.Link("old", "hard")
	for name, to := range map[string]string{
		"soft": "old", "to-new": "new", "dir/to-abs": abs, "dir/to-new": "new", "here": ".", "sub": "dir/sub"} {
		err = cmp.Or(err, os.Symlink(to, name))
	}
	same := "old,./old old,dir/../old new,new new,./new dir/new,dir//new new," + abs
	other := "old,new new,newer new,dir/new old, new,"
	if err == nil && runtime.GOOS != "windows" { // which may forbid links, and resolves .. before it follows them
		same += " old,hard old,soft new,to-new dir/to-abs,to-new new,here/to-new dir/new,sub/../new dir/new,dir/to-new"
		other += " new,soft new,sub/../new"
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		same += " new,NEW"
	} else {
		other += " new,NEW"
	}
	for i, pair := range strings.Fields(same + " " + other) {
		want := i < len(strings.Fields(same))
		if a, b, _ := strings.Cut(pair, ","); isSameFile(a, b) != want || isSameFile(b, a) != want {
			t.Errorf("%s: got %v", pair, !want)
		}
	}
}

func TestAddrError(t *testing.T) {
	t.Setenv("ADDR", "h:80")
	for advice, causes := range map[string][]error{
		"another server may be running: stop it, or set ADDR to another port": {
			syscall.EADDRINUSE, syscall.Errno(10048), syscall.Errno(10013)}, // the numbers on Windows
		"ports below 1024 need root; set ADDR to 1024 or above": {syscall.EACCES},
		"set ADDR to an address of this machine, or to a port alone for all of them": {
			syscall.EADDRNOTAVAIL, &net.DNSError{}},
	} {
		for _, cause := range causes {
			err := &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", cause)}
			if got, want := AddrError(err).Error(), `ADDR="h:80": `+err.Error()+"; "+advice; got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		}
	}
}

// Usage has a title, and a line of at most 80 columns for each setting.
func TestUsage(t *testing.T) {
	usage := regexp.MustCompile(`^\n.{1,80}\n(  [A-Z].{28}  \w.{0,46}\n){9}$`)
	if got := Usage(); !usage.MatchString(got) {
		t.Errorf("got\n%s", got)
	}
}
