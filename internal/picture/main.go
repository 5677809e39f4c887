// Command picture plays an evening with the built server and the real nc, and draws what they print, in a light and
// a dark picture, for README.md. It draws the same bytes each time, until the server says something else.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	windows, err := play("5s", func(ctx context.Context, port string) *window {
		return launch(exec.CommandContext(ctx, "nc", "localhost", port))
	})
	for name, colours := range themes {
		if err == nil {
			err = os.WriteFile(filepath.Join("internal", "picture", name), draw(colours, windows), 0o644)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

// window is the console or a terminal.
type window struct {
	io.Writer
	io.Reader
	err   error
	shown string // so far; in a line, what was typed stands behind a tab
	typed int    // the length of shown when something was typed last
}

// launch starts cmd in a window.
func launch(cmd *exec.Cmd) *window {
	in, _ := cmd.StdinPipe() // fails only where there is one already
	out, _ := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	return &window{Writer: in, Reader: out, err: cmd.Start()}
}

// plays types line, if there is one, and reads until what w has shown since something was typed last matches pattern.
func (w *window) plays(line, pattern string) error {
	if line != "" {
		w.shown += "\t" + line
		w.typed = len(w.shown)
		_, w.err = io.WriteString(w, line)
	}
	buf := make([]byte, 4096)
	for re := regexp.MustCompile(pattern); !re.MatchString(w.shown[w.typed:]); {
		if w.err != nil {
			return fmt.Errorf("there comes no %q: %w\n%s", pattern, w.err, w.shown)
		}
		var n int
		n, w.err = w.Read(buf)
		w.shown += string(buf[:n])
	}
	return nil
}

// dialer makes a terminal, which ends when ctx is done.
type dialer func(ctx context.Context, port string) *window

// play builds the server and plays evenings, eight at once, since Alice does not win each of them. It returns what
// Alice, Bob and the console were shown in one that she won.
func play(round string, dial dialer) ([]string, error) {
	dir, err := os.MkdirTemp("", "picture")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	server := filepath.Join(dir, "server.exe") // as good a name as any, where it need not be .exe
	if out, err := exec.Command("go", "build", "-o", server, "proofofstake").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the server: %w\n%s", err, out)
	}
	var windows [8][]string
	var errs [8]error
	var over sync.WaitGroup
	for i := range windows {
		over.Go(func() { windows[i], errs[i] = evening(server, round, dial) })
	}
	over.Wait()
	won := max(slices.Index(errs[:], nil), 0)
	return windows[won], errs[won]
}

// drawable is an evening in which Alice won and nothing came too late for its round.
var drawable = regexp.MustCompile(`tokens 125, yours 100(?s:.*)listening.*\nvalidators: 2(.*\n){3}block 1: .* proposals 2, stake 100 `)

// evening plays one evening.
func evening(server, round string, dial dialer) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	cmd := exec.CommandContext(ctx, server)
	cmd.Dir, cmd.Env = filepath.Dir(server), []string{"ADDR=127.0.0.1:0", "ROUND=" + round, "CHAIN_FILE="}
	console := launch(cmd)
	defer cmd.Wait()
	defer cancel()
	if err := console.plays("", `listening on .*\n$`); err != nil {
		return nil, err
	}
	port := regexp.MustCompile(`(\d+)\n$`).FindStringSubmatch(console.shown)[1]
	alice, bob := dial(ctx, port), dial(ctx, port)
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
		if err := step.plays(step.line, step.pattern); err != nil {
			return nil, err
		}
	}
	all := alice.shown + "\f" + bob.shown + "\f" + console.shown
	if !drawable.MatchString(all) {
		return nil, fmt.Errorf("not to be drawn, since Bob won or not all came in one round:\n%s", all)
	}
	return strings.Split(mask(all), "\f"), nil
}

// masks is what differs each time, and what is shown in its place: the first of fixed for what matches first, and so on.
var masks = []struct {
	pattern string
	fixed   []string
}{
	{`[0-9a-f]{64}`, []string{"a199…93fa", "607f…2427", "8778…a8ef", "c700…0e71", "a28e…3162"}}, // Bob's address is the fourth
	{`[A-Z2-7]{26}`, []string{"KBZ3…SGE"}},
	{`ticket \d+ of`, []string{"ticket 21 of"}},
	{`drawn in \w+`, []string{"drawn in 4s"}},
	{`[-\d]{10}T[:.\d]{18}Z`, []string{"2026-11-22T14:57:07.264085846Z"}},
	{`127.0.0.1:\d+`, []string{"[::]:9000"}},
}

// mask returns text with all that differs each time masked.
func mask(text string) string {
	for _, m := range masks {
		fixed := map[string]string{}
		text = regexp.MustCompile(m.pattern).ReplaceAllStringFunc(text, func(found string) string {
			if fixed[found] == "" {
				fixed[found] = m.fixed[min(len(fixed), len(m.fixed)-1)]
			}
			return fixed[found]
		})
	}
	return regexp.MustCompile(`(  c700.*\n)(  a199.*\n)`).ReplaceAllString(text, "$2$1") // the console sorts by address
}
