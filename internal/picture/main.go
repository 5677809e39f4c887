// Command picture plays an evening with the built server, and draws what it shows to two terminals and on its console, in a
// light and a dark picture, for README.md. It draws the same bytes each time, until the server says something else.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	windows := play("5s")
	for name, colours := range themes {
		must(0, os.WriteFile(filepath.Join("internal", "picture", name), draw(colours, windows), 0o644))
	}
}

// must is v. The program ends here if there is an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// drawable is an evening in which Alice won and nothing came too late for its round.
var drawable = regexp.MustCompile(`tokens 125, yours 100(?s:.*)listening.*\nvalidators: 2(.*\n){3}block 1: .* proposals 2, stake 100 `)

// play builds the server and plays evenings until one is drawable. It returns what Alice, Bob and the console were shown.
func play(round string) []string {
	dir := must(os.MkdirTemp("", "picture"))
	defer os.RemoveAll(dir)
	server := filepath.Join(dir, "server.exe") // as good a name as any, where it need not be .exe
	must(exec.Command("go", "build", "-o", server, "proofofstake").Output())
	shown := ""
	for try := 0; !drawable.MatchString(shown); try++ {
		if try == 30 {
			panic("Bob always wins, or not all comes in one round:\n" + shown)
		}
		shown = evening(server, round)
	}
	return strings.Split(mask(shown), "\f")
}

// window is the console or a terminal.
type window struct {
	io.Reader
	io.Writer        // nil: nobody types at the console
	shown     string // so far; in a line, what was typed stands behind a tab
	typed     int    // the length of shown when something was typed last
}

// plays types line, if there is one, and reads until what w has shown since something was typed last matches pattern.
func (w *window) plays(line, pattern string) {
	if line != "" {
		w.shown += "\t" + line
		w.typed = len(w.shown)
		must(io.WriteString(w, line))
	}
	buf := make([]byte, 4096)
	for re := regexp.MustCompile(pattern); !re.MatchString(w.shown[w.typed:]); {
		n, err := w.Read(buf)
		if w.shown += string(buf[:n]); err != nil {
			panic(fmt.Errorf("there comes no %q: %w\n%s", pattern, err, w.shown))
		}
	}
}

// evening plays one evening, and returns what Alice, Bob and the console were shown, with form feeds between.
func evening(server, round string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	cmd := exec.CommandContext(ctx, server)
	cmd.Dir, cmd.Env = filepath.Dir(server), []string{"ADDR=127.0.0.1:0", "ROUND=" + round, "CHAIN_FILE="}
	console := &window{Reader: must(cmd.StdoutPipe())}
	must(0, cmd.Start())
	defer cmd.Wait()
	defer cancel()
	console.plays("", `listening on .*\n$`)
	dial := func() *window {
		conn := must(net.Dial("tcp", regexp.MustCompile(`127.0.0.1:\d+`).FindString(console.shown)))
		return &window{Reader: conn, Writer: conn}
	}
	alice, bob := dial(), dial()
	for _, step := range []struct {
		*window
		line, pattern string
	}{
		{alice, "", `:$`}, {bob, "", `:$`},
		{alice, "100\n", `BPM:$`}, {bob, "25\n", `BPM:$`}, {console, "", `validators: 2.*\n.*\n.*\n`},
		{alice, "72\n", `BPM:$`}, {bob, "68\n", `BPM:$`}, {alice, "\n", `BPM:$`},
		{alice, "", `winning(.*\n)+.*BPM:$`}, {bob, "", `winning(.*\n)+.*BPM:$`},
		{bob, "abc\n", `\nslashed.*\n$`}, {console, "", `slashed.*\n.*\n$`},
	} {
		step.plays(step.line, step.pattern)
	}
	return alice.shown + "\f" + bob.shown + "\f" + console.shown
}

// mask returns text with all that differs each time fixed.
func mask(text string) string {
	hashes := map[string]string{} // as they are shown; Bob's address is the fourth
	text = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllStringFunc(text, func(hash string) string {
		if hashes[hash] == "" {
			hashes[hash] = []string{"a199…93fa", "607f…2427", "8778…a8ef", "c700…0e71", "a28e…3162"}[min(len(hashes), 4)]
		}
		return hashes[hash]
	})
	for pattern, fixed := range map[string]string{
		`[A-Z2-7]{26}`:             "KBZ3…SGE",
		`ticket \d+ of`:            "ticket 21 of",
		`\t\n`:                     "\t↵\n", // Enter alone
		`drawn in \w+`:             "drawn in 4s",
		`[-\d]{10}T[:.\d]{18}Z`:    "2026-11-22T14:57:07.264085846Z",
		`127.0.0.1:\d+`:            "[::]:9000",
		`(  c700.*\n)(  a199.*\n)`: "$2$1", // the console sorts by address
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, fixed)
	}
	return text
}
