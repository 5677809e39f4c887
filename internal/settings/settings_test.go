package settings

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
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
		"- - - - - - - - -":             "{:9000 30s 1m0s 5 chain.jsonl draws.jsonl 9223372036854775807 10000 1000} 10000",
		"10.0.0.1:0 1ms 2h 0 a b 9 0 0": "{10.0.0.1:0 1ms 2h0m0s 0 a b 9 0 0} 1000000",
		"[::1]:80 1h 1ms 7  - 1 1 3":    "{[::1]:80 1h0m0s 1ms 7   1 1 3} 1",
		"h:1 1h 1s 7   1 1073741824 3":  "{h:1 1h0m0s 1s 7   1 1073741824 3} 1000000",
		"- - - - - - 5 1000001 -":       "{:9000 30s 1m0s 5 chain.jsonl draws.jsonl 5 1000001 1000} 1000000",
	} {
		unset(t)
		for i, value := range strings.Split(values, " ") {
			if value != "-" {
				os.Setenv(names()[i], value)
			}
		}
		if got, err := Load(); err != nil || fmt.Sprint(got, got.MaxProposals()) != want {
			t.Errorf("%q: got %v, %v, want %s", values, got, err, want)
		}
	}
}

// TestDotEnv checks what a user is told about each mistake in a file .env.
func TestDotEnv(t *testing.T) {
	told := map[string]string{}
	for want, texts := range map[string][]string{
		"a port, such as 9000, or host:port": {
			"ADDR=", "ADDR=localhost", "ADDR=-1", "ADDR=h:http", "ADDR='a b:1'", "ADDR=é:1"},
		"a port of at most 65535, such as 9000":             {"ADDR=70000", "ADDR=h:65536"},
		"host:port without slashes, such as localhost:9000": {"ADDR=http://h:9000", "ADDR=http://h"},
		"brackets and a port, such as [::1]:9000":           {"ADDR=::1", "ADDR=fe80::1:9000", "ADDR=[::1]"},
		"a duration with a unit, such as 30s": {
			"ROUND=30", "ROUND=", "BROADCAST=1 m", "ROUND=“30s”"},
		"at least 1ms":     {"ROUND=0", "BROADCAST=999us", "ROUND=-1s"},
		"at most 2562047h": {"ROUND=9999999h1s"},
		"digits only, such as 50; 0 means no limit": {
			"BROADCAST_BLOCKS=all", "MAX_CLIENTS=10,000", "MAX_CLIENTS=1e3", "MAX_PER_ADDRESS=' 1 '"},
		"digits only, such as 1000":                          {"MAX_STAKE=1.5", "MAX_STAKE="},
		"at least 0":                                         {"BROADCAST_BLOCKS=-1"},
		"at least 1":                                         {"MAX_STAKE=0", "MAX_STAKE=-99999999999999999999"},
		"at most 1073741824":                                 {"MAX_CLIENTS=1073741825", "MAX_PER_ADDRESS=9999999999"},
		"at most 9223372036854775807":                        {"MAX_STAKE=99999999999999999999"},
		"a name, or the comment on its own line":             {"CHAIN_FILE=  # in memory"},
		"a name without control characters, such as a.jsonl": {"DRAWS_FILE='a\tb'", `CHAIN_FILE="a\new"`},
		"a name without a space before it, such as a.jsonl":  {"CHAIN_FILE=' a'"},
		"another file than CHAIN_FILE":                       {"DRAWS_FILE=chain.jsonl"},
	} {
		for _, text := range texts {
			name, value, _ := strings.Cut(text, "=")
			value = strings.NewReplacer("'", "", `"`, "", `\n`, "\n", "  #", "#").Replace(value)
			told[text] = fmt.Sprintf("invalid %s=%+q: want %s", name, value, want)
		}
	}
	for want, texts := range map[string][]string{
		".env: no setting is called %s; the settings are ADDR, ROUND, BROADCAST, BROADCAST_BLOCKS, CHAIN_FILE, " +
			"DRAWS_FILE, MAX_STAKE, MAX_CLIENTS, MAX_PER_ADDRESS\n": {
			"PORT=1", "PORT", "addr=1\nROND: 3\nROUND=1s", "ROND or addr", "a=\nb=\nc=\nd=\ne=\nf=", "a or b or c or d or e"},
		".env: invalid line %s: want a setting, such as ROUND=30s": {
			"ROUND=1s\nROUND 30s", `"ROUND 30s"`, "A-B=é\x1b\n\n", `"A-B=\u00e9\x1b"`},
		".env: invalid line %s: want a closing quote": {"ROUND=\"30s\nADDR=1", `"\"30s"`, "A='a near b", `"'a near b"`},
		".env: not UTF-8; save it as UTF-8%s": {
			"\xff\xfeA\x00=\x001\x00", "", "A\x00=\x001\x00", "", "CHAIN_FILE=M\xfcller", ""},
	} {
		for pair := range slices.Chunk(texts, 2) {
			told[pair[0]] = fmt.Sprintf(want, pair[1])
		}
	}
	if runtime.GOOS == "windows" {
		told[`CHAIN_FILE="C:\a"`] = `invalid CHAIN_FILE="C:a": want a path such as C:\a.jsonl, in .env without double quotes`
		told["DRAWS_FILE=c:\\a # x\r\nCHAIN_FILE='C:\\A'"] = `invalid DRAWS_FILE="c:\\a": want another file than CHAIN_FILE`
	}
	for text, want := range told {
		t.Run(text, func(t *testing.T) {
			unset(t)
			t.Chdir(t.TempDir())
			os.WriteFile(".env", []byte(text), 0o600)
			stderr, _ := os.Create("stderr")
			defer func(old *os.File) { os.Stderr = old }(os.Stderr)
			os.Stderr = stderr
			err := ReadDotEnv()
			if err == nil {
				_, err = Load()
			}
			stderr.Close()
			warning, _ := os.ReadFile("stderr")
			if got := strings.TrimSuffix(string(warning)+fmt.Sprint(err), "<nil>"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// A file .env sets what the environment does not, and must be readable.
func TestReadDotEnv(t *testing.T) {
	unset(t)
	t.Chdir(t.TempDir())
	os.WriteFile(".env", []byte("\ufeffADDR = 1 # x\r\n\r\nexport ROUND='2s'\nROUND=3s\nMAX_STAKE=9\nTZ=x"), 0o600)
	os.Setenv("MAX_STAKE", "8")
	if err := ReadDotEnv(); err != nil || valueOf("ADDR")+valueOf("ROUND")+valueOf("MAX_STAKE") != "13s8" {
		t.Errorf("error %v, environment %q", err, os.Environ())
	}
	os.Remove(".env")
	os.Mkdir(".env", 0o700)
	if err := fmt.Sprint(ReadDotEnv()); !strings.HasPrefix(err, ".env: ") || strings.Contains(err, "read .env") {
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
		"soft": "old", "to-new": "new", "to-abs": abs, "dir/to-new": "new", "here": ".", "sub": "dir/sub"} {
		err = cmp.Or(err, os.Symlink(to, name))
	}
	all := map[bool]string{
		true:  "old,./old old,dir/../old new,new new,./new dir/new,dir//new new," + abs,
		false: "old,new new,newer new,dir/new old, new,",
	}
	all[runtime.GOOS == "windows" || runtime.GOOS == "darwin"] += " new,NEW"
	if err == nil && runtime.GOOS != "windows" { // which may forbid links, and resolves .. before it follows them
		all[true] += " old,hard old,soft new,to-new to-abs,to-new new,here/to-new dir/new,sub/../new dir/new,dir/to-new"
		all[false] += " new,soft new,sub/../new"
	}
	for want, pairs := range all {
		for _, pair := range strings.Fields(pairs) {
			if a, b, _ := strings.Cut(pair, ","); isSameFile(a, b) != want || isSameFile(b, a) != want {
				t.Errorf("%s: got %v", pair, !want)
			}
		}
	}
}

func TestAddrError(t *testing.T) {
	t.Setenv("ADDR", "h:80")
	for cause, advice := range map[error]string{
		syscall.EADDRINUSE:    "another server may be running: stop it, or set ADDR to another port",
		syscall.Errno(10048):  "another server may be running: stop it, or set ADDR to another port", // on Windows
		syscall.Errno(10013):  "another server may be running: stop it, or set ADDR to another port", // on Windows
		syscall.EACCES:        "ports below 1024 need root; set ADDR to 1024 or above",
		syscall.EADDRNOTAVAIL: "set ADDR to an address of this machine, or to a port alone for all of them",
		&net.DNSError{}:       "set ADDR to an address of this machine, or to a port alone for all of them",
	} {
		err := &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", cause)}
		if got, want := AddrError(err).Error(), `ADDR="h:80": `+err.Error()+"; "+advice; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
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
