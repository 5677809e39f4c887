package settings

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
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
		"want a port, such as 9000, or host:port":                {"ADDR=", "ADDR=localhost", "ADDR='a b:1'", "ADDR=é:1"},
		"want a port of at most 65535, such as 9000":             {"ADDR=70000", "ADDR=h:65536"},
		"want host:port without slashes, such as localhost:9000": {"ADDR=http://h:9000", "ADDR=http://h"},
		"want brackets and a port, such as [::1]:9000":           {"ADDR=::1", "ADDR=fe80::1:9000", "ADDR=[::1]"},
		"want a duration with a unit, such as 30s":               {"ROUND=30", "ROUND=", "BROADCAST=1 m", "ROUND=“30s”"},
		"want at least 1ms":                                      {"ROUND=0", "BROADCAST=999us", "ROUND=-1s"},
		"want at most 2562047h":                                  {"ROUND=9999999h1s"},
		"want digits only, such as 50; 0 means no limit":         {"MAX_CLIENTS=10,000", "MAX_PER_ADDRESS=' 1 '"},
		"want digits only, such as 1000":                         {"MAX_STAKE=1.5", "MAX_STAKE="},
		"want at least 0":                                        {"MAX_CLIENTS=-1"},
		"want at least 1":                                        {"MAX_STAKE=0", "MAX_STAKE=-99999999999999999999"},
		"want at most 1073741824":                                {"MAX_CLIENTS=1073741825", "MAX_PER_ADDRESS=9999999999"},
		"want at most 9223372036854775807":                       {"MAX_STAKE=99999999999999999999"},

		`"# in memory": want a name, or the comment on its own line`:    {"CHAIN_FILE=  # in memory"},
		"want a name without control characters, such as a.jsonl":       {"DRAWS_FILE='a\tb'", `CHAIN_FILE="a\new"`},
		`=" a": want a name without a space before it, such as a.jsonl`: {"CHAIN_FILE=' a'"},
		`DRAWS_FILE="chain.jsonl": want another file than CHAIN_FILE`:   {"DRAWS_FILE=chain.jsonl"},

		".env: no setting is called PORT" + settings:                             {"PORT=1\nBROADCAST_BLOCKS=x"},
		".env: no setting is called PORTS" + settings:                            {"\ufeffexport PORTS=1\r\n"},
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
				os.Setenv("BROADCAST_BLOCKS", "0") // the environment wins
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
	t.Chdir(t.TempDir())
	missing := ReadDotEnv(nil)
	os.Mkdir(".env", 0o700)
	if err := ReadDotEnv(nil); missing != nil || err == nil || !strings.HasPrefix(err.Error(), ".env: ") {
		t.Errorf("a missing .env: %v; a directory: %v", missing, err)
	}
}

func TestIsSameFile(t *testing.T) {
	t.Chdir(t.TempDir())
	os.WriteFile("old", nil, 0o600)
	os.Mkdir("dir", 0o700)
	abs, _ := filepath.Abs("new")
	err := cmp.Or(os.Symlink("old", "link"), os.Symlink("dir", "dirlink"), os.Symlink("new", "dir/link"),
		os.Symlink(abs, "dir/abslink"), os.Link("old", "hard"))
	for pair, want := range map[string]bool{
		"old,hard": true, "old,link": true, "new,dir/../new": true, "dir/new,dirlink/new": true, "dir/abslink,new": true,
		"dir/new,dir/link": true, "new," + abs: true, "new,NEW": runtime.GOOS == "windows" || runtime.GOOS == "darwin",
		"old,new": false, "new,newer": false, "old,dir/old": false, "new,dir/new": false, "old,": false, "new,": false,
	} {
		if runtime.GOOS == "windows" && strings.Contains(pair, "link") {
			continue // it may forbid symbolic links
		}
		if a, b, _ := strings.Cut(pair, ","); isSameFile(a, b) != want || isSameFile(b, a) != want {
			t.Errorf("%s: got %v (links: %v)", pair, !want, err)
		}
	}
}

func TestAddrError(t *testing.T) {
	t.Setenv("ADDR", "h:80")
	for cause, advice := range map[error]string{
		syscall.EADDRINUSE:    "another server may be running: stop it, or set ADDR to another port",
		syscall.Errno(10048):  "another server may be running: stop it, or set ADDR to another port", // on Windows
		syscall.EACCES:        "ports below 1024 need root; set ADDR to 1024 or above",
		syscall.EADDRNOTAVAIL: "set ADDR to an address of this machine, or to a port alone for all of them",
	} {
		err := &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", cause)}
		if got, want := AddrError(err).Error(), `ADDR="h:80": `+err.Error()+"; "+advice; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}
