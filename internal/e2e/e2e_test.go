//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// ---- Playing with netcat ----

// An evening with three terminals, as README.md tells it.
func TestInteractiveNetcat(t *testing.T) {
	t.Parallel()
	for _, nc := range netcats {
		needs(t, nc[0])
		s := start(t, t.TempDir(), "BROADCAST=400ms")
		alice, bob, carol := s.netcat(nc...), s.netcat(nc...), s.netcat(nc...)
		for _, p := range []*process{alice, bob, carol} {
			p.wait(`^Enter token balance:`)
		}
		alice.types("100\n")
		told := alice.wait("\nyou are validator ([0-9a-f]{64}) with 100 tokens staked\n(draw 1 seal: [0-9a-f]{64}\n)\nEnter a new BPM:")
		bob.types("25\n")
		bob.wait("\nyou are validator [0-9a-f]{64} with 25 tokens staked\n" + told[2] + "\nEnter a new BPM:")
		s.wait("validators: 2 with 125 tokens staked\n")
		alice.types("72\n")
		alice.wait("\nblock 1 proposed with BPM 72: tickets 1 to 100; the winner is drawn in [0-9.]+m?s\n\nEnter a new BPM:")
		won := "\nwinning validator: " + told[1] + "\nblock 1, BPM 72: ticket [0-9]+ of 100, secret [A-Z2-7]{26}\n"
		next := "draw 2 seal: [0-9a-f]{64}\n"
		alice.wait(won + "you forged block 1\n" + next + "\nEnter a new BPM:")
		bob.wait(won + next + "\nEnter a new BPM:")
		carol.wait(won + next + "Enter token balance:")
		s.wait(`\nblock 1: BPM 72, ticket [0-9]+ of 100, proposals 1, stake 100 \(100\.0%\), forged by\n  ` + told[1] + "\n" + next)
		verifyByHand(t, bob.wait(`\n(\[\{"Index":0.*\{"Index":1.*\}\])\n\nEnter a new BPM:`)[1])
		bob.types("abc\n")
		bob.wait("\nslashed: \"abc\" is not a pulse \\(a whole number, 0 or more\\); 25 tokens forfeited\n$")
		carol.types("quit\n")
		carol.wait("\ngoodbye\n$")
		s.stop(os.Interrupt)
		alice.wait("\nthe server is shutting down\n$")
		for _, p := range []*process{alice, bob, carol} {
			p.stop(nil)
		}
	}
}

// verifyByHand checks the hash of every block with printf and sha256sum, as README.md tells people to, and the links.
func verifyByHand(t *testing.T, chain string) {
	prevHash, blocks := "", regexp.MustCompile(`\{"Index":(\d+),"Timestamp":"(.*?)","BPM":(\d+),"Hash":"(.*?)","PrevHash":"(.*?)","Validator":"(.*?)"\}`)
	for _, b := range blocks.FindAllStringSubmatch(chain, -1) {
		out, err := exec.Command("sh", "-c", `printf '%s\n' "$@" | sha256sum`, "sh", b[1], b[2], b[3], b[5], b[6]).Output()
		expect(t, err == nil && strings.HasPrefix(string(out), b[4]+" ") && b[5] == prevHash, "%s: sha256sum says %s, %v", b[0], out, err)
		prevHash = b[4]
	}
}

// printf '100\n72\n' | nc -N localhost 9000 prints who won and exits.
func TestPipedNetcat(t *testing.T) {
	t.Parallel()
	want := regexp.MustCompile("^Enter token balance:\nyou are validator ([0-9a-f]{64}) with 100 tokens staked\ndraw 1 seal: .*\n\nEnter a new BPM:" +
		"\nblock 1 proposed with BPM 72: .*\n\nEnter a new BPM:" +
		"\nwinning validator: ([0-9a-f]{64})\nblock 1, BPM 72: .*\nyou forged block 1\ndraw 2 seal: .*\n$")
	for _, nc := range netcats {
		needs(t, nc[0])
		p := start(t, t.TempDir()).netcat(nc...)
		p.types("100\n72\n")
		p.stop(nil)
		m := want.FindStringSubmatch(p.String())
		expect(t, m != nil && m[1] == m[2], "netcat shows %q", p)
	}
}

// Anybody can check a draw with common tools, from what nc has printed; also one in which a slashed ticket came up.
func TestCheckDrawByHand(t *testing.T) {
	t.Parallel()
	needs(t, "nc.openbsd", "sha256sum", "bc")
	s := start(t, t.TempDir(), "ROUND=1s")
	alice, bob := s.netcat("nc.openbsd"), s.netcat("nc.openbsd")
	alice.types("100\n")
	bob.types("25\n")
	for third, how := range map[string]string{ // what carol types, stake and all, and what it comes to
		"1000\n71\n":                  `: ticket \d+ of 1125, secret`,
		"1000000000000000\n71\nabc\n": `: ticket \d+ of 1000000000000125 was slashed, again: ticket \d+ of 125, secret`, // but for one time in 10^13
	} {
		came := false
		for try := 0; try < 20 && !came; try++ { // all three must propose in the same round
			carol := s.netcat("nc.openbsd", "-N")
			carol.types(third)
			carol.wait(`\nblock \d+ proposed with`)
			bob.types("68\n")
			alice.types("72\n")
			block := alice.wait(`\nwinning validator: .*\nblock (\d+), BPM`)[1]
			alice.types("draw\n")
			alice.wait("; the lines of its draw:\n[A-Z2-7]{26}\n(.+\n)+\nEnter a new BPM:")
			carol.stop(nil)
			out, err := checkDraw(block, alice.String())
			expect(t, err == nil, "%v, %s in\n%s", err, out, alice)
			if came = regexp.MustCompile(how).MatchString(out); came {
				lie := regexp.MustCompile(`\n([0-9a-f]{64}) 100 72\n`).ReplaceAllString(alice.String(), "\n$1 101 72\n")
				_, err = checkDraw(block, lie)
				expect(t, err != nil, "it does not notice a lie in\n%s", lie)
			}
		}
		expect(t, came, "no draw came to %q:\n%s", how, alice)
	}
}

// checkDraw runs checkdraw.sh for a block, on what nc has printed.
func checkDraw(block, printed string) (string, error) {
	cmd := exec.Command("./checkdraw.sh", block)
	cmd.Stdin = strings.NewReader(printed)
	out, err := cmd.Output()
	return string(out), err
}

// The players that README.md shows play.
func TestScripts(t *testing.T) {
	t.Parallel()
	needs(t, "bash", "nc.openbsd", "python3")
	s, bin := start(t, t.TempDir(), "ADDR=localhost:0"), t.TempDir()
	nc, _ := exec.LookPath("nc.openbsd")
	os.Symlink(nc, bin+"/nc") // else it may be another netcat
	for script, shell := range map[string]string{"player.sh": "bash", "player.py": "python3"} {
		p := prepare(t, "", shell, script, s.addr[strings.LastIndex(s.addr, ":")+1:], "100", "3")
		p.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		p.launch().stop(nil)
		expect(t, regexp.MustCompile("^(winning validator: [0-9a-f]{64}\n){3}$").MatchString(p.String()), "%s prints %q", script, p)
	}
}

// ---- Starting and stopping ----

// A bad setting ends in one clear line and exit status 1.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	for setting, want := range map[string]string{
		"ADDR=x":                               "want a port",
		"ADDR=" + s.addr:                       "address already in use; want a free port",
		"ROUND=abc":                            "want a duration",
		"MAX_STAKE=0":                          "want a number",
		"MAX_CLIENTS=-1":                       "want a number",
		"MAX_PER_ADDRESS=":                     "want a number",
		"CHAIN_FILE=/none/x":                   "no such file or directory",
		"DRAWS_FILE=/dev/null":                 "not a regular file",
		"DRAWS_FILE=chain.jsonl":               "",
		"CHAIN_FILE=" + s.Dir + "/chain.jsonl": "in use by another process",
		"DRAWS_FILE=" + s.Dir + "/draws.jsonl": "in use by another process",
	} {
		bad := prepareServer(t, t.TempDir(), setting).launch()
		name, value, _ := strings.Cut(setting, "=")
		line := regexp.MustCompile("^" + name + `="` + value + `".*` + want + ".*\n$")
		expect(t, bad.exit() == 1 && line.MatchString(bad.stderr.String()), "%s: %q", setting, bad.stderr)
	}
}

// Settings come from .env; the environment wins. verify reads it as well, and minds only its own.
func TestDotEnv(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, ".env"), []byte("ADDR=127.0.0.1:0\nROUND=abc\nCHAIN_FILE=my.jsonl\nDRAWS_FILE=our.jsonl\n"), 0o644)
	code, _, errors := run(t, dir)
	expect(t, code == 1 && strings.HasPrefix(errors, `ROUND="abc"`), "exit status %d: %s", code, errors)
	s := prepare(t, dir, binary)
	s.Env = append(os.Environ(), "ROUND=100ms")
	s.launch().listens().joins(1).forges(2)
	verifies(t, dir, "ok: 2 draws")
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	expect(t, len(files) == 2, "there are %q", files)
	os.WriteFile(filepath.Join(dir, ".env"), []byte("what is this\n"), 0o644)
	for _, args := range []string{"", "verify", "fairness"} {
		code, out, errors := run(t, dir, strings.Fields(args)...)
		expect(t, code == 1 && out == "" && strings.HasPrefix(errors, ".env"), "%q: exit status %d, %q, %q", args, code, out, errors)
	}
}

// verify and fairness from the command line, also while the server writes; unknown words get the usage.
func TestCommands(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "ROUND=20ms")
	c := s.dial()
	var crowd []*terminal
	for stake := range 30 {
		crowd = append(crowd, s.joins(stake+1))
	}
	for _, player := range crowd {
		go player.plays()
	}
	for range 10 {
		c.wait("\nwinning validator: ")
		verifies(t, s.Dir, `ok: \d+ draws`)
		_, out, _ := run(t, s.Dir, "fairness")
		for line := range strings.Lines(out) {
			expect(t, utf8.RuneCountInString(line) <= 80+len("\n"), "fairness has a line of more than 80 columns: %q", line)
		}
	}
	s.stop(os.Interrupt)
	code, out, errors := run(t, s.Dir, "fairness")
	expect(t, code == 0 && strings.Contains(out, "10 others"), "fairness: exit status %d, %q, %q", code, out, errors)
	for name, lie := range map[string][]string{"chain.jsonl": {`"BPM":70`, `"BPM":71`}, "draws.jsonl": {`"Total":`, `"Total":1`}} {
		file, _ := os.ReadFile(filepath.Join(s.Dir, name))
		os.WriteFile(filepath.Join(s.Dir, "bad-"+name), []byte(strings.Replace(string(file), lie[0], lie[1], 1)), 0o644)
	}
	for args, want := range map[string]string{
		"verify bad-chain.jsonl":             "1 .*bad-chain.jsonl: line 2: wrong hash",
		"verify chain.jsonl bad-draws.jsonl": "1 bad-draws.jsonl: line ",
		"verify none.jsonl":                  "1 .*none.jsonl: no such file",
		"fairness none.jsonl":                "1 .*none.jsonl: no such file",
		"help":                               "2 usage:",
		"verify a b c":                       "2 usage:",
		"fairness a b":                       "2 usage:",
	} {
		code, _, errors := run(t, s.Dir, strings.Fields(args)...)
		expect(t, regexp.MustCompile("(?s)^"+want).MatchString(fmt.Sprint(code, " ", errors)), "%s: exit status %d, %q", args, code, errors)
	}
}

// What stands in the draws file costs nothing at the start. (Not parallel: it compares times.)
func TestStartWithHugeDrawsFile(t *testing.T) {
	huge := filepath.Join(t.TempDir(), "huge.jsonl")
	file, err := os.Create(huge)
	if err != nil || file.Truncate(4<<30) != nil { // a hole: it takes no space
		t.Skip("no room for holes: ", err)
	}
	file.WriteAt([]byte("\n{\"Index\":1}\n"), 4<<30)
	file.Close()
	fastest := map[string]time.Duration{"none.jsonl": patience, huge: patience}
	for i := range 10 {
		name := []string{"none.jsonl", huge}[i%2]
		begun := time.Now()
		s := start(t, t.TempDir(), "DRAWS_FILE="+name)
		fastest[name] = min(fastest[name], time.Since(begun))
		s.stop(os.Interrupt)
	}
	expect(t, fastest[huge] < 10*fastest["none.jsonl"], "with a draws file of 4 GiB, and without, it starts in %v", fastest)
}

// Ctrl-C ends the start as well, while a long chain is read.
func TestStopWhileLoading(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeChain(t, dir, 200_000, 70)
	begun := time.Now()
	start(t, dir).stop(os.Interrupt)
	whole := time.Since(begun)
	stopped := false
	for try := 0; try < 5 && !stopped; try++ {
		s := prepareServer(t, dir).launch()
		time.Sleep(whole / 10) // nothing tells that it is reading
		begun = time.Now()
		s.Process.Signal(os.Interrupt)
		s.exit()
		stopped = time.Since(begun) < whole/2 && !strings.Contains(s.String(), "restored")
	}
	expect(t, stopped, "Ctrl-C did not end a start of %v at once", whole)
}

// Ctrl-C and SIGTERM end the server within its limit although terminals are stuck: they have more waiting
// for them than the kernel takes. A second Ctrl-C ends it at once.
func TestStopWithStuckTerminals(t *testing.T) {
	t.Parallel()
	for _, signals := range [][]os.Signal{{os.Interrupt}, {syscall.SIGTERM}, {os.Interrupt, os.Interrupt}} {
		t.Run(fmt.Sprint(signals), func(t *testing.T) {
			t.Parallel()
			s := broadcasts(t, binary)
			for range 10 {
				s.connect(4096)
			}
			reader := s.dial()
			reader.wait(`\n\[.*\]\n`) // more than the kernel takes
			begun := time.Now()
			s.Process.Signal(signals[0])
			reader.wait("\nthe server is shutting down\n$")
			if len(signals) == 2 {
				time.Sleep(100 * time.Millisecond) // nobody is faster
				s.Process.Signal(signals[1])
				code, took := s.exit(), time.Since(begun)
				expect(t, code == -1 && took < 3*time.Second, "exit status %d after %v", code, took)
				return
			}
			code, took := s.exit(), time.Since(begun) // it should be 4 s
			expect(t, code == 0 && took > 3*time.Second && took < 8*time.Second, "exit status %d after %v: %s", code, took, s.stderr)
		})
	}
}

// Whoever closes the window stops the server as by Ctrl-C, but not if it was started with nohup.
func TestWindowClosed(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	c := s.joins(1)
	s.stop(syscall.SIGHUP)
	c.wait("\nthe server is shutting down\n$")

	s = prepareServer(t, t.TempDir())
	s.Path, s.Args = "/bin/sh", []string{"sh", "-c", `trap "" HUP; exec "$0"`, binary}
	c = s.launch().listens().joins(1)
	s.Process.Signal(syscall.SIGHUP)
	c.forges(3)
	s.stop(syscall.SIGTERM)
}

// A console that takes no output any more, as after Ctrl-S, holds up nobody: rounds go on, and the server
// can be stopped. What it takes again at the end is all there. Its reader may as well go.
func TestStuckConsole(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"stuck", "read", "closed"} {
		stdout, in, _ := os.Pipe()
		stderr, errIn, _ := os.Pipe()
		errIn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		errIn.Write(make([]byte, 1<<20)) // until it is full
		s, console := prepareServer(t, t.TempDir(), "CHAIN_FILE=", "ROUND=1ms", "MAX_CLIENTS=5"), bufio.NewReader(stdout)
		s.Stdout, s.Stderr = in, errIn
		s.launch()
		in.Close()
		errIn.Close()
		for line, err := "", error(nil); err == nil && !strings.HasPrefix(line, "listening"); io.WriteString(s.screen, line) {
			line, err = console.ReadString('\n')
		}
		if s.listens(); end == "closed" {
			stdout.Close()
			stderr.Close()
		}
		var c *terminal
		for range 5 {
			c = s.joins(1)
			c.forges(80) // 16 kB of console; a pipe takes 64
		}
		s.dial().wait("^the server is full") // which is said on stderr
		c.forges(1)
		s.Process.Signal(os.Interrupt)
		c.wait("\nthe server is shutting down\n$")
		if end == "read" {
			var warnings, text bytes.Buffer
			var both sync.WaitGroup
			both.Go(func() { io.Copy(&warnings, stderr) })
			both.Go(func() { io.Copy(&text, console) })
			both.Wait()
			want := regexp.MustCompile(`(?s)block 1: .*block 401: .*\ndraw 402 seal: .*\n.*the server is full.*\n$`)
			expect(t, want.MatchString(text.String()+warnings.String()), "the console says\n%s%s", &text, &warnings)
		}
		expect(t, s.exit() == 0, "%s: %v", end, s.ProcessState)
		stdout.Close()
		stderr.Close()
	}
}

// A build for 32 bits refuses a chain with numbers that it cannot hold, and says so.
func Test32Bits(t *testing.T) {
	t.Parallel()
	small := filepath.Join(t.TempDir(), "small")
	build := exec.Command("go", "build", "-o", small, "proofofstake")
	build.Env = append(os.Environ(), "GOARCH=386", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	for bpm, want := range map[int64]string{1 << 31: `line 2: .*BPM.*2147483648.*32 bits`, 1<<31 - 1: "\nok: 2 blocks"} {
		chain := writeChain(t, t.TempDir(), 1, bpm)
		verifies(t, filepath.Dir(chain), "ok: 0 draws; 1 blocks have no record of their draw") // by the build of this system
		out, err := exec.Command(small, "verify", chain).CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Skip("this system does not run it: ", err)
		}
		expect(t, regexp.MustCompile(want).Match(out), "BPM %d: %v, %s", bpm, err, out)
	}
}

// ---- Files ----

// kill -9 at random moments: the two files never contradict each other, and every winner that anybody has heard of is
// in the chain, with its draw.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	heard := map[string]bool{} // what must be in the chain
	for range 20 {
		s := start(t, dir, "ROUND=10ms", "BROADCAST=10ms")
		c := s.joins(1)
		for _, other := range []*terminal{s.joins(2), s.joins(3), s.joins(4)} {
			go other.plays()
		}
		for range 1 + rand.IntN(4) {
			c.wait("\nwinning validator: ")
		}
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond) // any moment is right
		s.Process.Kill()
		s.exit()
		verifies(t, dir, `ok: \d+ draws(; the seal was made anew \d+ times, as after a restart \(lines .*\))?`)
		c.await("but the end") // nothing comes
		for _, m := range regexp.MustCompile(`\nwinning validator: (.{64})\nblock (\d+), BPM`).FindAllStringSubmatch(c.String(), -1) {
			heard[`"Index":`+m[2]+`,.*"Validator":"`+m[1]+`"`] = true
		}
		chain, _ := os.ReadFile(filepath.Join(dir, "chain.jsonl"))
		for block := range heard {
			expect(t, regexp.MustCompile(block).Match(chain), "%s was announced, and it is not in the chain", block)
		}
	}
	expect(t, len(heard) >= 20, "only %d blocks were announced", len(heard))
}

// mount mounts a file system on a folder of its own.
func mount(t *testing.T, args ...string) (dir string) {
	dir = t.TempDir()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("only root may mount a disk: %v, %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	return dir
}

// On a full disk a draw is made once: its block is announced when it and its record are kept, which comes by itself when there
// is room again, and who proposes meanwhile hears so. If the server is stopped before, the draw was none.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		full, stopped := []string{"chain.jsonl", "draws.jsonl"}[i%2], i < 2
		t.Run(fmt.Sprint(full, " stopped:", stopped), func(t *testing.T) {
			t.Parallel()
			disk, dir := mount(t, "-t", "tmpfs", "-o", "size=64k", "tmpfs"), t.TempDir()
			os.Symlink(filepath.Join(disk, full), filepath.Join(dir, full))
			s := start(t, dir, "ROUND=20ms")
			c := s.joins(1)
			c.forges(1)
			filler := filepath.Join(disk, "filler")
			os.WriteFile(filler, make([]byte, 1<<20), 0o644)
			go c.plays() // since what is free in the file's last page is still used
			block := s.stderr.wait(`block (\d+) is drawn and cannot be kept: .*` + full +
				`: .*no space left on device; it is tried again every second\n`)[1]
			rich := s.joins(1e15)
			rich.types("70\n") // would win if it were drawn again
			rich.wait("\nblock " + block + " is drawn and cannot be kept yet; try again later\n\nEnter a new BPM:$")
			verifies(t, dir, `ok: \d+ draws`)
			if !stopped {
				os.Remove(filler)
				rich.wait("^\nwinning validator: .*\nblock " + block + `, BPM 70: ticket 1 of 1, secret`)
				s.stderr.wait("block " + block + " is kept\n$")
				rich.forges(1) // but for one time in 10^15
			}
			s.stop(os.Interrupt)
			verifies(t, dir, `ok: \d+ draws`)
			expect(t, !stopped || !strings.Contains(rich.String(), "winning validator"), "announced, though not kept: %s", rich)
			draws, _ := os.ReadFile(filepath.Join(dir, "draws.jsonl"))
			chain, _ := os.ReadFile(filepath.Join(dir, "chain.jsonl"))
			records := regexp.MustCompile(`\{"Index":`+block+`,"Block":"(.*?)"`).FindAllSubmatch(draws, -1)
			expect(t, stopped || len(records) == 1 && bytes.Contains(chain, records[0][1]), "block %s was drawn as %q", block, records)
			os.Remove(filler)
			start(t, dir).joins(1).forges(1)
			verifies(t, dir, `ok: \d+ draws; the seal was made anew 1 times.*`)
		})
	}
}

// The draws file may be deleted or moved while the server runs; what was moved is as good as before.
func TestDrawsFileGone(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "ROUND=50ms")
	draws, moved := filepath.Join(s.Dir, "draws.jsonl"), filepath.Join(s.Dir, "moved.jsonl")
	c := s.joins(1)
	c.forges(2)
	os.Rename(draws, moved)
	c.forges(2)
	s.stderr.wait(`draws\.jsonl.*\n$`)
	verifies(t, s.Dir, "ok: 2 draws; 2 blocks have no record of their draw")
	first, _ := os.ReadFile(moved)
	second, _ := os.ReadFile(draws)
	os.WriteFile(moved, append(first, second...), 0o644)
	verifies(t, s.Dir, "ok: 4 draws", "chain.jsonl", moved)
	os.Remove(draws)
	verifies(t, s.Dir, "ok: 0 draws; 4 blocks have no record of their draw")
	c.forges(2)
	s.stderr.wait(`draws\.jsonl.*\n$`)
	verifies(t, s.Dir, "ok: 2 draws; 4 blocks have no record of their draw")
}

// A chain file that somebody changes takes no more blocks: none is announced, and the console says what to do.
func TestChainFileChanged(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"edited", "deleted"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := start(t, t.TempDir(), "ROUND=50ms")
			c := s.joins(1)
			c.forges(1)
			name := filepath.Join(s.Dir, "chain.jsonl")
			before, _ := os.ReadFile(name)
			if os.WriteFile(name, bytes.Replace(before, []byte(`"BPM":70`), []byte(`"BPM":71`), 1), 0o644); how == "deleted" {
				os.Remove(name)
			}
			c.types("70\n")
			s.stderr.wait(`block 2 is drawn and cannot be kept: .*chain\.jsonl: .*(put it back|restart).*\n`)
			c.types("70\n")
			c.wait("\nblock 2 is drawn and cannot be kept yet; try again later\n")
			expect(t, !strings.Contains(c.String(), "block 2, BPM"), "announced: %s", c)
			if how == "deleted" {
				os.WriteFile(name, before, 0o644) // put back: the server goes on, or after its restart
				s.stop(os.Interrupt)
				start(t, s.Dir).joins(1).forges(1)
				verifies(t, s.Dir, `ok: \d draws.*`)
				return
			}
			s.stop(os.Interrupt)
			code, _, errors := run(t, s.Dir)
			expect(t, code == 1 && strings.Contains(errors, "line 2: wrong hash"), "it starts: exit status %d, %q", code, errors)
		})
	}
}

// A chain file whose last newline somebody has taken, as some editors do, loses no block.
func TestLastNewlineGone(t *testing.T) {
	t.Parallel()
	chain := writeChain(t, t.TempDir(), 3, 70)
	before, _ := os.ReadFile(chain)
	os.Truncate(chain, int64(len(before)-1))
	s := start(t, filepath.Dir(chain))
	s.stderr.wait(`chain\.jsonl: .*block 3.*kept.*\n`)
	s.joins(1).forges(1)
	after, _ := os.ReadFile(chain)
	expect(t, bytes.HasPrefix(after, before), "the file is now %s", after)
	verifies(t, s.Dir, "ok: 1 draws; 3 blocks have no record of their draw")
}

// While a file system is frozen, only proposals wait, and not for long.
func TestFrozenDisk(t *testing.T) {
	t.Parallel()
	needs(t, "mkfs.ext4", "fsfreeze")
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("sh", "-c", `truncate -s 16M "$0" && mkfs.ext4 -q "$0"`, image).CombinedOutput(); err != nil {
		t.Skipf("%v, %s", err, out)
	}
	disk := mount(t, "-o", "loop", image)
	s := start(t, disk)
	c := s.joins(5)
	c.forges(1)
	if out, err := exec.Command("fsfreeze", "-f", disk).CombinedOutput(); err != nil {
		t.Skipf("%v, %s", err, out)
	}
	thaw := func() { exec.Command("fsfreeze", "-u", disk).Run() }
	t.Cleanup(thaw) // else nothing can be killed
	c.types("70\n")
	for text := ""; !strings.Contains(text, "cannot be kept yet; try again later"); { // some come before that is said
		d := s.joins(3)
		d.types("draw\nhelp\n\n70\nquit\n")
		d.wait("; the lines of its draw:\n(.+\n)+\nEnter a new BPM:\nType your pulse")
		text = d.wait("(\nblock 2.*\n)\nEnter a new BPM:\nblock 2 .*\n\nEnter a new BPM:\ngoodbye\n$")[1]
	}
	expect(t, !strings.Contains(c.String(), "block 2, BPM"), "announced, though not kept")
	thaw()
	c.wait("\nwinning validator: .*\nblock 2, BPM 70: ")
	s.stop(syscall.SIGTERM)
	verifies(t, disk, `ok: \d draws`)
}

// ---- Crowds ----

// broadcasts starts a server that sends 400 kB every 500 ms.
func broadcasts(t *testing.T, server string) *process {
	dir := t.TempDir()
	writeChain(t, dir, 1400, 70)
	s := prepareServer(t, dir, "BROADCAST=500ms", "BROADCAST_BLOCKS=0")
	s.Path = server
	return s.launch().listens()
}

// hasty builds a server that is the same but that it loses patience with those who do not read after 5 s: tests
// must last longer than that.
func hasty(t *testing.T) (name string) {
	source, _ := filepath.Abs("../lineconn/lineconn.go")
	text, err := os.ReadFile(source)
	patience := regexp.MustCompile(`\bPatience = \d+ \* time\.Second\n`)
	if err != nil || !patience.Match(text) {
		t.Fatal("there is no Patience in lineconn.go: ", err)
	}
	name = filepath.Join(t.TempDir(), "hasty")
	os.WriteFile(name+".go", patience.ReplaceAll(text, []byte("Patience = 5 * time.Second\n")), 0o644)
	os.WriteFile(name+".json", fmt.Appendf(nil, `{"Replace": {%q: %q}}`, source, name+".go"), 0o644)
	if err := build(name, "-overlay", name+".json"); err != nil {
		t.Fatal(err)
	}
	return name
}

// Who is one too many hears so, also if it has sent what nobody reads; the console says once who holds most
// places, and when there is room again. Terminals on the same machine do not count as from one address.
func TestFull(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "MAX_CLIENTS=2", "MAX_PER_ADDRESS=1")
	a := s.joins(1)
	s.joins(1)
	for range 10 {
		talker := s.dial()
		talker.types(strings.Repeat("100\n", 20_000))
		talker.wait("^the server is full, try again later\n$")
	}
	s.stderr.wait("^.*the server is full.*(loopback|127.0.0.1).*\n$")
	a.conn.Close()
	s.stderr.wait("^.*there is room again\n$")
	s.joins(1)
}

// A flood of proposals fills the round, and nothing more: who takes part goes on.
func TestFloodOfProposals(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "MAX_CLIENTS=200", "ROUND=1h")
	var flood sync.WaitGroup
	for range 16 {
		flood.Go(func() {
			for range 100 {
				c := s.dial()
				c.types("1\n1\n")
				heard := c.await("\nblock 1 proposed with BPM 1: |\nthe round is full; the next one opens in .*\n")
				expect(t, heard != nil, "it heard only %q", c)
				c.conn.SetLinger(0) // a reset
				c.conn.Close()
			}
		})
	}
	flood.Wait()
	expect(t, !s.tooLarge(), "the server took too much memory")
	c := s.joins(5)
	c.types("\n")
	c.wait("\nblock 1: proposals 200, tokens 200; the winner is drawn in ")
	s.stop(os.Interrupt)
	c.wait("\nwinning validator: .*\nblock 1, BPM 1: ticket .* of 200, secret")
}

// Out of file descriptors the server goes on, those connected notice nothing, and the console says so
// once, and again when it is over, in local time.
func TestOutOfFiles(t *testing.T) {
	t.Parallel()
	s := prepareServer(t, t.TempDir(), "TZ=Asia/Kolkata")
	s.Path, s.Args = "/bin/sh", []string{"sh", "-c", `ulimit -n 40; exec "$0"`, binary}
	first := s.launch().listens().joins(1)
	var crowd []*terminal
	for range 60 {
		crowd = append(crowd, s.dial())
	}
	date := s.stderr.wait("^(.{19}) cannot accept terminals: .*too many open files.*\n$")[1]
	if zone, err := time.LoadLocation("Asia/Kolkata"); err == nil {
		at, _ := time.ParseInLocation("2006/01/02 15:04:05", date, zone)
		expect(t, time.Since(at).Abs() < time.Hour, "the log says it is %s, which is not local time", date)
	}
	first.forges(5) // time for more errors, and life goes on
	for _, c := range crowd {
		c.conn.Close()
	}
	s.stderr.wait("^.*accepting terminals again\n$")
	s.joins(1)
}

// What else comes to an open port. All hear their last words, also if they have sent what nobody reads, and begin to
// read only when the server has done with them.
func TestStrangers(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	for i := range 200 { // a port scanner
		conn := s.connect(4096)
		conn.SetLinger(i%2 - 1) // every other connection ends in a reset
		conn.Close()
	}
	for typed, last := range map[string]string{
		"GET / HTTP/1.1\r\nHost: localhost:9000\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n":   "too many tries, goodbye\n$",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00\xff\n", 200): "too many tries, goodbye\n$",
		"5\n" + strings.Repeat("x", 100_000):                                               "slashed: \"x{40}\" is not a pulse .*; 5 tokens forfeited\n$",
		strings.Repeat("help\n", 80) + "quit\n" + strings.Repeat("70\n", 20_000):           "\ngoodbye\n$",
	} {
		for range 10 {
			conn := s.connect(4096)
			io.WriteString(conn, typed)
			s.joins(1).types("quit\n") // meanwhile
			heard, err := io.ReadAll(conn)
			expect(t, regexp.MustCompile(last).Match(heard), "%q heard %q, %v", typed, heard, err)
		}
	}
	s.joins(1).forges(1)
	expect(t, s.stderr.String() == "", "the console says\n%s", s.stderr)
}

// A server that was suspended cuts nobody off for the time in which it did not run, also if it was just sending.
func TestSuspended(t *testing.T) {
	t.Parallel()
	s := broadcasts(t, hasty(t))
	var conns []net.Conn
	for range 20 {
		conns = append(conns, s.connect(32<<10))
	}
	var all sync.WaitGroup
	hear := func(conns []net.Conn, bytes int64) {
		for _, conn := range conns {
			all.Go(func() {
				conn.SetReadDeadline(time.Now().Add(patience))
				n, err := io.CopyN(io.Discard, conn, bytes)
				expect(t, err == nil, "cut off after %d bytes: %v", n, err)
			})
		}
	}
	hear(conns, 800e3)
	all.Wait()
	hear(conns[:1], 800e3) // meanwhile the others do not read: a broadcast is under way to them
	all.Wait()
	s.Process.Signal(syscall.SIGSTOP)
	hear(conns, 2000e3)
	time.Sleep(7 * time.Second) // longer than a terminal may take nothing
	s.Process.Signal(syscall.SIGCONT)
	all.Wait()
	expect(t, s.stderr.String() == "", "the console says\n%s", s.stderr)
}

// Who reads slowly but steadily is not cut off, however much is sent; who reads nothing is. Neither takes much memory.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	s := broadcasts(t, hasty(t))
	end := time.Now().Add(8 * time.Second)
	var slow sync.WaitGroup
	for range 50 {
		conn := s.connect(4096)
		slow.Go(func() { // 5 kB a second
			var err error
			for tick := time.NewTicker(100 * time.Millisecond); err == nil && time.Now().Before(end); <-tick.C {
				conn.SetReadDeadline(time.Now().Add(patience))
				_, err = io.CopyN(io.Discard, conn, 500)
			}
			expect(t, err == nil, "cut off %v before the end: %v", time.Until(end), err)
		})
	}
	for range 5 {
		s.connect(4096) // and nobody reads
	}
	for cut := 0; cut < 5; {
		var n int
		fmt.Sscan(s.stderr.wait(` (\d+) terminals cut off: they did not read\n`)[1], &n)
		cut += n
	}
	slow.Wait()
	expect(t, !s.tooLarge(), "the server took too much memory")
}
