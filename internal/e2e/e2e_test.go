//go:build unix

package e2e

import (
	"bytes"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// ---- Playing with netcat ----

// An evening with three terminals, as README.md tells it: also the hash of a block is checked as there. Then who pipes
// printf '100\n72\n' through nc -N hears who won, and nc exits.
func TestNetcat(t *testing.T) {
	t.Parallel()
	for _, nc := range []string{"nc.openbsd -N", "ncat"} { // with the flag that half-closes when the input ends
		t.Run(nc, func(t *testing.T) {
			t.Parallel()
			s := start(t, t.TempDir(), "BROADCAST=400ms")
			alice, bob, carol, piped := s.netcat(nc), s.netcat(nc), s.netcat(nc), s.netcat(nc)
			for _, p := range []*process{alice, bob, carol} {
				p.wait(`^Enter token balance:`)
			}
			alice.types("100\n")
			seal := alice.wait("\nyou are validator .* with 100 tokens staked\n(draw 1 seal: .*\n)\nEnter a new BPM:")[1]
			bob.types("25\n")
			bob.wait("\nyou are validator .* with 25 tokens staked\n" + seal + "\nEnter a new BPM:")
			alice.types("72\n")
			alice.wait("\nblock 1 proposed with BPM 72: tickets 1 to 100; .*\n\nEnter a new BPM:")
			const won, next = "\nwinning validator: .*\nblock 1, BPM 72: .*\n", "draw 2 seal: .*\n"
			alice.wait(won + "you forged block 1\n" + next + "\nEnter a new BPM:")
			bob.wait(won + next + "\nEnter a new BPM:")
			carol.wait(won + next + "Enter token balance:")
			s.wait(`block 1: BPM 72, .*\n  .*\n` + next)
			block := bob.wait(`\{"Index":(1),"Timestamp":"(.*?)","BPM":(72),"Hash":"(.*?)","PrevHash":"(.*?)","Validator":"(.*?)"\}\]`)
			sum := exec.Command("sha256sum")
			sum.Stdin = strings.NewReader(strings.Join([]string{block[1], block[2], block[3], block[5], block[6], ""}, "\n"))
			hash, _ := sum.Output()
			matches(t, string(hash), "^"+block[4]+" ")
			piped.types("100\n72\n")
			piped.stop(nil)
			matches(t, piped.text, "\nblock 2 proposed with BPM 72: (?s:.*)\nyou forged block 2\ndraw 3 seal: .*\n$")
			bob.types("abc\n")
			bob.wait("\nslashed: .*; 25 tokens forfeited\n$")
			carol.types("quit\n")
			carol.wait("\ngoodbye\n$")
			s.stop(os.Interrupt)
			alice.wait("\nthe server is shutting down\n$")
			for _, p := range []*process{alice, bob, carol} {
				p.stop(nil)
			}
		})
	}
}

// Anybody can check a draw with common tools, from what nc has printed; also one in which a slashed ticket came up.
func TestCheckDrawByHand(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("bc"); err != nil {
		t.Skip(err)
	}
	check := func(block, printed string) string {
		cmd := exec.Command("./checkdraw.sh", block)
		cmd.Stdin = strings.NewReader(printed)
		out, err := cmd.Output()
		return fmt.Sprint(string(out), err)
	}
	s := start(t, t.TempDir(), "ROUND=1s")
	alice, bob := s.netcat("nc.openbsd"), s.netcat("nc.openbsd")
	alice.types("100\n")
	bob.types("25\n")
	for range 20 { // until all three propose in the same round; carol's ticket comes up but for one time in 10^13
		carol := s.netcat("nc.openbsd")
		carol.types("1000000000000000\n71\nabc\n")
		carol.wait("forfeited")
		bob.types("68\n")
		alice.types("72\n")
		block := alice.wait(`\nwinning validator: .*\nblock (\d+), BPM`)[1]
		alice.types("draw\n")
		alice.wait("; the lines of its draw:\n[A-Z2-7]{26}\n(.+\n)+\nEnter a new BPM:")
		says := check(block, alice.text)
		matches(t, says, "^ok: ")
		if regexp.MustCompile(`: ticket \d+ of 1000000000000125 was slashed, again: ticket \d+ of 125, secret`).MatchString(says) {
			matches(t, check(block, strings.ReplaceAll(alice.text, " 100 72\n", " 101 72\n")), "^this was not told: ")
			return
		}
	}
	t.Errorf("no slashed ticket came up:\n%s", alice.text)
}

// The players that README.md shows play.
func TestScripts(t *testing.T) {
	t.Parallel()
	nc, err := exec.LookPath("nc.openbsd")
	if err != nil {
		t.Skip(err)
	}
	s, bin := start(t, t.TempDir(), "ADDR=localhost:0"), t.TempDir()
	os.Symlink(nc, bin+"/nc") // else it may be another netcat
	for script, shell := range map[string]string{"player.sh": "bash", "player.py": "python3"} {
		p := command(t, "", shell, script, s.addr[strings.LastIndex(s.addr, ":")+1:], "100", "3")
		p.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		p.launch().stop(nil)
		matches(t, p.text, "^(winning validator: [0-9a-f]{64}\n){3}$")
	}
}

// ---- Starting and stopping ----

// Settings come from .env, and the environment wins. What is wrong ends in one clear line and exit status 1, and what is no
// command in the usage. verify and fairness work while the server writes, and mind only their own settings.
func TestCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) { os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644) }
	write(".env", "BROADCAST=abc\nCHAIN_FILE=my.jsonl\nDRAWS_FILE=our.jsonl\n")
	s := start(t, dir, "BROADCAST=1h ROUND=20ms")
	c := s.dial()
	for stake := range 30 {
		s.robot(stake + 1)
	}
	for range 10 {
		c.wait("\nwinning validator: ")
		verifies(t, dir, `ok: \d+ draws`)
		matches(t, run(t, dir, "fairness"), "^0 (.{0,80}\n)+$")
	}
	matches(t, run(t, dir, "fairness"), "\n10 others ")
	chain, _ := os.ReadFile(filepath.Join(dir, "my.jsonl"))
	write("bad.jsonl", strings.Replace(string(chain), `"BPM":70`, `"BPM":71`, 1))
	for words, want := range map[string]string{
		"":                                `1 BROADCAST="abc".* want a duration`,
		"BROADCAST=1h":                    `1 CHAIN_FILE="my.jsonl".* in use by another process`,
		"BROADCAST=1h CHAIN_FILE=a":       `1 DRAWS_FILE="our.jsonl".* in use by another process`,
		"BROADCAST=1h CHAIN_FILE=a/b":     `1 CHAIN_FILE="a/b".* (no such file or|not a) directory`,
		"BROADCAST=1h CHAIN_FILE= ADDR=x": `1 ADDR="x".* want a port`,
		"BROADCAST=1h ADDR=" + s.addr:     `1 ADDR="` + s.addr + `".* address already in use; want a free port`,
		"verify bad.jsonl":                `1 the draws are not checked.*\nbad.jsonl: line 2: wrong hash`,
		"DRAWS_FILE= verify bad.jsonl":    `1 the draws are not checked.*\nbad.jsonl: line 2: wrong hash`,
		"verify none.jsonl our.jsonl":     `1 .*none.jsonl: no such file`,
		"fairness none.jsonl":             `1 .*none.jsonl: no such file`,
		"help":                            `2 usage:.*\n.*\n`,
		"verify a b c":                    `2 usage:.*\n.*\n`,
		"fairness a b":                    `2 usage:.*\n.*\n`,
	} {
		matches(t, run(t, dir, words), "^"+want+".*\n$")
	}
	write(".env", "what is this\n")
	for _, words := range []string{"", "verify", "fairness"} {
		matches(t, run(t, dir, words), `^1 \.env: .*\n$`)
	}
}

// A build for 32 bits refuses a chain with numbers that it cannot hold, and says so.
func Test32Bits(t *testing.T) {
	t.Parallel()
	small := filepath.Join(t.TempDir(), "small")
	out, err := exec.Command("env", "GOARCH=386", "CGO_ENABLED=0", "go", "build", "-o", small, "proofofstake").CombinedOutput()
	expect(t, err == nil, "%s", out)
	for bpm, want := range map[int64]string{1 << 31: `line 2: .*BPM.*2147483648.*32 bits`, 1<<31 - 1: "ok: 2 blocks"} {
		dir := t.TempDir()
		writeChain(dir, 1, bpm)
		verifies(t, dir, "ok: 0 draws; 1 blocks have no record of their draw") // by the build of this system
		cmd := exec.Command(small, "verify")
		cmd.Dir = dir
		if out, err = cmd.CombinedOutput(); cmd.ProcessState == nil {
			t.Skip("this system does not run it: ", err)
		}
		matches(t, string(out), want)
	}
}

// Ctrl-C ends the start as well, while a long chain is read.
func TestStopWhileLoading(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeChain(dir, 200_000, 70)
	begun := time.Now()
	start(t, dir, "").stop(os.Interrupt)
	whole := time.Since(begun)
	for range 5 {
		s := server(t, dir, "").launch()
		time.Sleep(whole / 10) // nothing tells that it is reading
		begun = time.Now()
		s.Process.Signal(os.Interrupt)
		s.exit()
		if time.Since(begun) < whole/2 && !strings.Contains(s.text, "restored") {
			return
		}
	}
	t.Errorf("Ctrl-C did not end a start of %v at once", whole)
}

// Ctrl-C, SIGTERM and the closing of the window end the server within its limit although terminals are stuck: they have more
// waiting for them than the kernel takes. A second Ctrl-C ends it at once.
func TestStopWithStuckTerminals(t *testing.T) {
	t.Parallel()
	for _, signals := range [][]os.Signal{{os.Interrupt}, {syscall.SIGTERM}, {syscall.SIGHUP}, {os.Interrupt, os.Interrupt}} {
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
			atOnce := len(signals) == 2
			if atOnce {
				time.Sleep(100 * time.Millisecond) // nobody is faster
				s.Process.Signal(signals[1])
			}
			code, took := s.exit(), time.Since(begun) // it should be 4 s
			expect(t, code == map[bool]int{true: -1}[atOnce], "exit status %d: %s", code, s.stderr.text)
			expect(t, atOnce == (took < 3*time.Second) && took < 8*time.Second, "it took %v", took)
		})
	}
}

// A console that takes no output any more, as after Ctrl-S, holds up nobody: rounds go on, and the server
// can be stopped. Its reader may as well go.
func TestStuckConsole(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"stuck", "closed"} {
		s := server(t, t.TempDir(), "CHAIN_FILE= ROUND=1ms MAX_CLIENTS=5")
		stderr := s.Stderr.(*os.File)
		stderr.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		stderr.Write(make([]byte, 1<<20)) // until it is full
		if s.launch().listens(); end == "closed" {
			s.out.Close()
			s.stderr.out.Close()
		}
		var crowd []*terminal
		for i := range 5 {
			crowd = append(crowd, s.joins(1))
			crowd[i].forges(80) // 16 kB of console; a pipe takes 64
		}
		late := s.dial()
		late.types(strings.Repeat("100\n", 20_000))          // which nobody reads
		late.wait("^the server is full, try again later\n$") // which is said on stderr as well
		late.resets()
		crowd[4].forges(1)
		s.Process.Signal(os.Interrupt)
		for _, c := range crowd {
			c.wait("\nthe server is shutting down\n$")
			c.in.Close()
		}
		err := s.Wait()
		expect(t, err == nil, "%s: %v", end, err)
	}
}

// What the console has not taken when the server ends is waited for, if it takes it soon.
func TestLateConsole(t *testing.T) {
	t.Parallel()
	for range 5 { // if this machine is so busy that it is too late
		s := start(t, t.TempDir(), "CHAIN_FILE= ROUND=1ms")
		c := s.joins(1)
		c.forges(400) // 80 kB of console; a pipe takes 64
		s.Process.Signal(os.Interrupt)
		c.wait("\nthe server is shutting down\n$")
		c.in.Close()
		time.Sleep(100 * time.Millisecond)
		if regexp.MustCompile(`(?s)block 1: .*block 400: .*\ndraw 401 seal: [^\n]*\n$`).MatchString(s.rest()) {
			return
		}
	}
	t.Error("what the console had not taken is lost")
}

// ---- Files ----

// kill -9 at random moments: the two files never contradict each other, and every winner that anybody has heard of is
// in the chain, with its draw.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	winners := regexp.MustCompile(`\nwinning validator: (.{64})\nblock (\d+), BPM`)
	var heard [][]string
	for range 20 {
		s := start(t, dir, "ROUND=10ms BROADCAST=10ms")
		c := s.joins(1)
		for stake := range 3 {
			s.robot(stake + 1)
		}
		for range 1 + rand.IntN(4) {
			c.wait("\nwinning validator: ")
		}
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond) // any moment is right
		s.Process.Kill()
		s.exit()
		verifies(t, dir, `ok: \d+ draws(; the seal was made anew \d+ times, as after a restart \(lines .*\))?`)
		heard = append(heard, winners.FindAllStringSubmatch(c.rest(), -1)...)
	}
	expect(t, len(heard) >= 20, "only %d blocks were announced", len(heard))
	chain, _ := os.ReadFile(filepath.Join(dir, "chain.jsonl"))
	for _, block := range heard {
		matches(t, string(chain), `"Index":`+block[2]+`,.*"Validator":"`+block[1]+`"`)
	}
}

// mount makes a folder "$0" and runs a script that mounts a file system there.
func mount(t *testing.T, script string) (dir string) {
	dir = t.TempDir()
	if out, err := exec.Command("sh", "-ec", script, dir).CombinedOutput(); err != nil {
		t.Skipf("only root may mount a disk: %v, %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	return dir
}

// On a full disk a draw is made once: its block is announced when it and its record are kept, which comes by itself when there
// is room again, and who proposes meanwhile hears so. If the server is stopped before, the draw was none.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, full := range []string{"chain.jsonl", "draws.jsonl"} {
		t.Run(full, func(t *testing.T) {
			t.Parallel()
			disk, dir := mount(t, `mount -t tmpfs -o size=64k tmpfs "$0"`), t.TempDir()
			os.Symlink(filepath.Join(disk, full), filepath.Join(dir, full))
			filler := filepath.Join(disk, "filler")
			s := start(t, dir, "ROUND=20ms")
			fill := func() (block string) {
				os.WriteFile(filler, make([]byte, 1<<20), 0o644)
				return s.stderr.wait(`block (\d+) is drawn and cannot be kept: .*` + full +
					`: .*no space left on device; it is tried again every second\n`)[1]
			}
			s.robot(1) // since what is free in the file's last page is still used
			block := fill()
			rich := s.joins(1e15)
			rich.types("70\n") // would win if it were drawn again
			rich.wait("\nblock " + block + " is drawn and cannot be kept yet; try again later\n\nEnter a new BPM:$")
			verifies(t, dir, `ok: \d+ draws`)
			os.Remove(filler)
			rich.wait("^\nwinning validator: .*\nblock " + block + `, BPM 70: ticket 1 of 1, secret`)
			rich.forges(1) // but for one time in 10^15
			block = fill()
			verifies(t, dir, `ok: \d+ draws`)
			s.stop(os.Interrupt)
			expect(t, !strings.Contains(rich.rest(), "block "+block+", BPM"), "announced, though not kept: %s", rich.text)
			verifies(t, dir, `ok: \d+ draws`)
			os.Remove(filler)
			start(t, dir, "").joins(1).forges(1)
			verifies(t, dir, `ok: \d+ draws; the seal was made anew 1 times.*`)
		})
	}
}

// The draws file may be moved or deleted while the server runs; what was moved is as good as before. A chain file that somebody
// changes takes no more blocks: none is announced, and the console says what to do. At the start, a last line without its newline,
// as some editors leave it, is no block less, and what stands in the draws file is not read.
func TestFilesChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	chain, draws, moved := filepath.Join(dir, "chain.jsonl"), filepath.Join(dir, "draws.jsonl"), filepath.Join(dir, "moved.jsonl")
	s := start(t, dir, "ROUND=50ms")
	c := s.joins(1)
	c.forges(1)
	os.Rename(draws, moved)
	c.forges(1)
	verifies(t, dir, "ok: 1 draws; 1 blocks have no record of their draw")
	first, _ := os.ReadFile(moved)
	second, _ := os.ReadFile(draws)
	os.WriteFile(moved, append(first, second...), 0o644)
	matches(t, run(t, dir, "verify chain.jsonl moved.jsonl"), "^0 .*\nok: 2 draws\n$")
	os.Remove(draws)
	c.forges(1)
	s.stderr.wait(`draws\.jsonl: .* it is gone; .*\n.*draws\.jsonl: .* it is gone; .*\n`)
	verifies(t, dir, "ok: 1 draws; 2 blocks have no record of their draw")

	before, _ := os.ReadFile(chain)
	os.WriteFile(chain, bytes.Replace(before, []byte(`"BPM":70`), []byte(`"BPM":71`), 1), 0o644)
	c.types("70\n")
	s.stderr.wait(`block 4 is drawn and cannot be kept: .*chain\.jsonl: .*move it back.*restart.*\n`)
	c.types("70\n")
	c.wait("\nblock 4 is drawn and cannot be kept yet; try again later\n")
	s.stop(os.Interrupt)
	expect(t, !strings.Contains(c.rest(), "block 4, BPM"), "announced: %s", c.text)
	matches(t, run(t, dir, ""), "^1 .*line 2: wrong hash.*\n$")

	os.WriteFile(chain, before[:len(before)-1], 0o644) // put back, but for the last newline
	os.WriteFile(moved, append(make([]byte, 64<<20), '\n'), 0o644)
	s = start(t, dir, "DRAWS_FILE=moved.jsonl")
	s.stderr.wait(`chain\.jsonl: .*block 3.*kept.*\n$`)
	read := s.counter("io", "rchar")
	expect(t, read < 1<<20, "at the start the server has read %d bytes", read)
	s.joins(1).forges(1)
	after, _ := os.ReadFile(chain)
	expect(t, bytes.HasPrefix(after, before), "the file was\n%s\nand is\n%s", before, after)
	verifies(t, dir, "ok: 1 draws; 3 blocks have no record of their draw")
}

// While a file system is frozen, only proposals wait, and not for long.
func TestFrozenDisk(t *testing.T) {
	t.Parallel()
	disk := mount(t, `truncate -s 16M "$0".image; mkfs.ext4 -q "$0".image; mount -o loop "$0".image "$0"
		fsfreeze -f "$0"; fsfreeze -u "$0"`)
	freezes := func(flag string) { exec.Command("fsfreeze", flag, disk).Run() }
	s := start(t, disk, "")
	c := s.joins(5)
	c.forges(1)
	freezes("-f")
	t.Cleanup(func() { freezes("-u") }) // else nothing can be killed
	c.types("70\n")
	s.stderr.wait("block 2 ")
	d := s.joins(3)
	d.types("draw\nhelp\n\n70\nquit\n")
	d.wait("; the lines of its draw:\n(.+\n)+\nEnter a new BPM:\nType your pulse(.+\n)+\nEnter a new BPM:" +
		"(\nblock 2 is drawn and cannot be kept yet; try again later\n\nEnter a new BPM:){2}\ngoodbye\n$")
	freezes("-u")
	c.wait("\nwinning validator: .*\nblock 2, BPM 70: ")
	s.stop(syscall.SIGTERM)
	verifies(t, disk, `ok: \d draws`)
}

// ---- Crowds ----

// A flood of proposals fills the round, and nothing more: who takes part goes on.
func TestFlood(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "MAX_CLIENTS=200 ROUND=1h")
	for range 1600 {
		c := s.dial()
		c.types("1\n1\n")
		c.wait("\nblock 1 proposed with BPM 1: |\nthe round is full; the next one opens in .*\n")
		c.resets()
	}
	most := s.counter("status", "VmHWM")
	expect(t, most < 100_000 || underRace(), "the server took %d kB of memory", most)
	c := s.joins(5)
	c.types("\n")
	c.wait("\nblock 1: proposals 200, tokens 200; the winner is drawn in ")
	s.stop(os.Interrupt)
	c.wait("\nwinning validator: .*\nblock 1, BPM 1: ticket .* of 200, secret")
}

// Out of file descriptors the server goes on, those connected notice nothing, and the console says so once, and again when it
// is over, in local time. Started with nohup, it also goes on when the window is closed.
func TestOutOfFiles(t *testing.T) {
	t.Parallel()
	s := server(t, t.TempDir(), "TZ=Asia/Kolkata")
	s.Path, s.Args = "/bin/sh", []string{"sh", "-c", `ulimit -n 40; trap "" HUP; exec "$0"`, binary}
	first := s.launch().listens().joins(1)
	s.Process.Signal(syscall.SIGHUP)
	var crowd []net.Conn
	for range 60 {
		crowd = append(crowd, s.connect(4096))
	}
	date := s.stderr.wait("^(.{19}) cannot accept terminals: .*too many open files.*\n$")[1]
	if zone, err := time.LoadLocation("Asia/Kolkata"); err == nil {
		at, _ := time.ParseInLocation("2006/01/02 15:04:05", date, zone)
		expect(t, time.Since(at).Abs() < time.Hour, "the log says it is %s, which is not local time", date)
	}
	first.forges(5) // time for more errors, and life goes on
	for _, conn := range crowd {
		conn.Close()
	}
	s.stderr.wait("^.*accepting terminals again\n$")
	s.joins(1)
}

// What else comes to an open port. All hear their last words, also if they have sent what nobody reads, and begin to
// read only when the server has done with them.
func TestStrangers(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "")
	for i := range 200 { // a port scanner
		conn := s.connect(4096)
		conn.SetLinger(i%2 - 1) // every other connection ends in a reset
		conn.Close()
	}
	for typed, last := range map[string]string{
		"GET / HTTP/1.1\r\nHost: localhost:9000\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n":   "too many tries, goodbye\n$",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00\xff\n", 200): "too many tries, goodbye\n$",
		"5\n" + strings.Repeat("x", 100_000):                                               "slashed: .*; 5 tokens forfeited\n$",
		strings.Repeat("help\n", 80) + "quit\n" + strings.Repeat("70\n", 20_000):           "\ngoodbye\n$",
	} {
		for range 10 {
			conn := s.connect(4096)
			io.WriteString(conn, typed)
			s.joins(1).types("quit\n") // meanwhile
			heard, _ := io.ReadAll(conn)
			matches(t, string(heard), last)
		}
	}
	s.joins(1).forges(1)
	s.stop(os.Interrupt)
	expect(t, s.stderr.text == "", "the console says\n%s", s.stderr.text)
}

// broadcasts starts a server, of this binary, that sends 400 kB every 500 ms.
func broadcasts(t *testing.T, binary string) *process {
	dir := t.TempDir()
	writeChain(dir, 1400, 70)
	s := server(t, dir, "BROADCAST=500ms BROADCAST_BLOCKS=0")
	s.Path = binary
	return s.launch().listens()
}

// hasty builds a server that is the same but that it loses patience with those who do not read after 5 s: tests
// must last longer than that.
func hasty(t *testing.T) (name string) {
	name = filepath.Join(t.TempDir(), "hasty")
	source, _ := filepath.Abs("../lineconn/lineconn.go")
	text, _ := os.ReadFile(source)
	changed := regexp.MustCompile(`\bStallTimeout = \d+ `).ReplaceAll(text, []byte("StallTimeout = 5 "))
	expect(t, !bytes.Equal(changed, text), "there is no Patience in lineconn.go")
	os.WriteFile(name+".go", changed, 0o644)
	os.WriteFile(name+".json", fmt.Appendf(nil, `{"Replace": {%q: %q}}`, source, name+".go"), 0o644)
	err := build(name, "-overlay", name+".json")
	expect(t, err == nil, "%v", err)
	return name
}

// Who reads slowly but steadily is not cut off, however much is sent, and nobody is for the time in which the server was suspended,
// also if it was just sending. Who reads nothing is. None takes much memory.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	s := broadcasts(t, hasty(t))
	reads := func(conn net.Conn, bytes int64) bool {
		conn.SetReadDeadline(time.Now().Add(patience))
		_, err := io.CopyN(io.Discard, conn, bytes)
		expect(t, err == nil, "cut off: %v", err)
		return err == nil
	}
	var slow sync.WaitGroup
	var over atomic.Bool
	for range 50 {
		conn := s.connect(4096)
		slow.Go(func() { // 5 kB a second
			for !over.Load() && reads(conn, 500) {
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	var conns []net.Conn
	for range 20 {
		conns = append(conns, s.connect(32<<10))
	}
	allRead := func(conns []net.Conn, bytes int64) {
		var all sync.WaitGroup
		for _, conn := range conns {
			all.Go(func() { reads(conn, bytes) })
		}
		all.Wait()
	}
	allRead(conns, 800e3)
	allRead(conns[:1], 800e3) // meanwhile the others do not read: a broadcast is under way to them
	s.Process.Signal(syscall.SIGSTOP)
	time.AfterFunc(7*time.Second, func() { s.Process.Signal(syscall.SIGCONT) }) // longer than a terminal may take nothing
	allRead(conns, 2000e3)
	for cut := 0; cut < len(conns); { // now they read nothing
		var n int
		fmt.Sscan(s.stderr.wait(` (\d+) terminals cut off: they did not read\n`)[1], &n)
		cut += n
	}
	over.Store(true)
	slow.Wait()
	most := s.counter("status", "VmHWM")
	expect(t, most < 100_000 || underRace(), "the server took %d kB of memory", most)
}
