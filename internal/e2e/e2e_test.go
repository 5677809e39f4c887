//go:build linux

// Package e2e has the end-to-end tests. They run the built server as a process, on real disks, and play with real
// sockets and the real nc (OpenBSD's and nmap's). The messages and their order are tested in main_test.go. Here is what
// only processes, sockets, disks and netcats can show. The tests need Linux, where the kernel ends the processes with
// the tests.
package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNetcat plays a game with real netcats. Then it pipes a stake and a BPM through netcat, which prints who won and
// exits, and runs one of the players that are scripts.
func TestNetcat(t *testing.T) {
	t.Parallel()
	for nc, script := range map[string]string{ // netcat has the flag that half-closes when the input ends
		"nc.openbsd -N": `nc() { nc.openbsd "$@"; }; . ./player.sh`,
		"ncat":          `exec python3 player.py "$@"`,
	} {
		t.Run(nc, func(t *testing.T) {
			t.Parallel()
			s := server(t, t.TempDir(), "ROUND=1s BROADCAST=400ms").start()
			host, port, _ := strings.Cut(s.addr, ":")
			netcat := func() *process { return command(t, "", append(strings.Fields(nc), host, port)...).launch() }
			alice, bob, carol, piped := netcat(), netcat(), netcat(), netcat()
			alice.wait("^" + stakePrompt)
			alice.types("100\n")
			alice.wait(joined + bpmPrompt)
			bob.types("25\n")
			bob.wait(joined + bpmPrompt)
			carol.wait("^" + stakePrompt)
			alice.forges(1)
			bob.wait(won + sealed + bpmPrompt)
			bob.wait(`\n\[.*\]\n` + bpmPrompt)
			carol.wait(won + sealed + stakePrompt)
			s.wait("validators: 2 .*\n(?:  .*\n)+block 1: proposed; .*\n")
			s.wait("block 1: \\w+ 50, .*\n(?:  .*\n)+" + sealed)
			piped.types("100\n50\n")
			piped.stop(nil)
			// If the round ends before the server gets the end of the input, a prompt follows, and perhaps a broadcast.
			matches(t, piped.text, counted+"(?s:.*)"+won+"(?:"+forged+")?"+sealed+"($|"+bpmPrompt+")")
			player := command(t, "", "bash", "-c", script, "", port, "100", "2").launch()
			player.stop(nil)
			matches(t, player.text, "^(winning validator: [0-9a-f]{64}\n){2}$")
			bob.types(notABPM + "\n")
			bob.wait(isSlashed + "$")
			carol.types("quit\n")
			carol.wait(goodbye + "$")
			s.stop(os.Interrupt)
			alice.wait(shutdown + "$")
			for _, p := range []*process{alice, bob, carol} {
				p.stop(nil)
			}
		})
	}
}

// TestCommands checks that settings come from .env unless the environment has them, that verify and fairness work while
// the server writes, and that the last line of an error names the setting or the file, with exit status 1.
func TestCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shell := func(script string) { exec.Command("sh", "-c", "cd $0; "+script, dir).Run() }
	shell(`printf 'BROADCAST=abc\nCHAIN_FILE=my.jsonl\nDRAWS_FILE=our.jsonl\n' > .env`)
	s := server(t, dir, "BROADCAST=1h ROUND=20ms").start()
	s.wait("^to join, .* 127.0.0.1 .*\nrounds of 20ms; chain: " + dir + "/my.jsonl; Ctrl-C stops the server\n$")
	c := s.dial()
	for range 3 {
		go react(s.dial().in.(net.Conn), "1\n50\n", "50\n")
	}
	for range 10 {
		c.wait(won)
		matches(t, run(t, dir, "verify my.jsonl"), verified)
		matches(t, run(t, dir, "fairness"), "^0 (.{0,80}\n)+2> $")
	}
	matches(t, run(t, dir, "DRAWS_FILE=moved verify"), `^0 ok: .*\nok: 0 draws; .*\n2> $`)
	shell(`sed 's/:50,/:51,/' my.jsonl > chain; sed 's/ 50"/ 51"/g' our.jsonl > draws
		head -n 1 my.jsonl > genesis; head -n 1 our.jsonl > draw`)
	for words, message := range map[string]string{ // settings and arguments
		"":                            `invalid BROADCAST="abc": want a duration`,
		"BROADCAST=1h":                `CHAIN_FILE="my.jsonl": .* in use`,
		"BROADCAST=1h ADDR=" + s.addr: `ADDR="` + s.addr + `": .*address already in use`,
		"BROADCAST=1h CHAIN_FILE=chain DRAWS_FILE=": "chain: line 2: wrong hash",
		"CHAIN_FILE= verify":                        "CHAIN_FILE",
		"CHAIN_FILE=none verify":                    "none: no such file",
		"verify my.jsonl .":                         `\.: `, // it is a directory
		"verify chain":                              "draws not checked: .*\nchain: line 2: wrong hash",
		"verify my.jsonl draws":                     "draws: line ",
		"CHAIN_FILE=genesis fairness draw":          "draw: no draws yet",
		"DRAWS_FILE= fairness":                      "nothing to count: DRAWS_FILE is empty",
		"DRAWS_FILE=none fairness":                  "none: no such file",
	} {
		t.Run(words, func(t *testing.T) { matches(t, run(t, dir, words), "^1 (?s:.*)2> (?:.*\n)?.*"+message+".*\n$") })
	}
	for _, words := range []string{"start", "verify a b c", "fairness a b"} {
		matches(t, run(t, dir, words), `^2 2> cannot run "`+words+`"\nusage:`)
	}
	for _, words := range []string{"-h", "--help", "help", "verify -h"} {
		matches(t, run(t, dir, words), "^0 usage:(.{0,80}\n)+  ROUND=30s .*\n(.{0,80}\n)+2> $")
	}
	shell("echo what is this > .env")
	matches(t, run(t, dir, ""), `^1 2> \.env: .*\n$`)
}

// TestLoading starts a server on a chain that may not be on disk, as after a kill between write and sync. The server
// must sync the file before it writes anything, so that a power cut cannot undo what somebody was shown. Another server
// is interrupted while it reads a long chain.
func TestLoading(t *testing.T) {
	t.Parallel()
	short, long := t.TempDir(), t.TempDir()
	writeChain(short, 1)
	server(t, short, "").trace("-e", "trace=fsync,write", "-s", "0").start().stop(os.Interrupt)
	trace, _ := os.ReadFile(filepath.Join(short, "strace.log"))
	matches(t, string(trace), `^(\S+ +fsync.*\n)*\S+ +fsync\(\d+<.*/chain.jsonl>\) += 0\n`)
	writeChain(long, 100_000) // takes much longer to read than it takes to notice that it is open
	s := server(t, long, "").launch()
	wait := "until ls -l /proc/$0/fd | grep chain.jsonl; do :; done"
	exec.Command("timeout", "60", "sh", "-c", wait, fmt.Sprint(s.Process.Pid)).Run()
	s.Process.Signal(os.Interrupt)
	matches(t, s.result(), "^1 2> .*interrupted while reading the chain.*\n$")
}

// TestStop stops a server whose clients are stalled: more is pending than the kernel takes. The server does not make a
// client that reads wait for them. It waits for them a little, unless there is a second Ctrl-C. A server without
// clients stops immediately.
func TestStop(t *testing.T) {
	t.Parallel()
	interrupt := os.Interrupt
	for _, signals := range [][]os.Signal{{interrupt}, {syscall.SIGTERM}, {syscall.SIGHUP}, {interrupt, interrupt}} {
		t.Run(fmt.Sprint(signals), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			writeChain(dir, 1400) // a broadcast takes 400 kB
			s, idle := server(t, dir, "BROADCAST=500ms BROADCAST_BLOCKS=0").start(), server(t, t.TempDir(), "").start()
			for range 10 {
				s.dial().in.(*net.TCPConn).SetReadBuffer(4096)
			}
			reader := s.dial()
			for range 2 { // so the others have a broadcast pending
				reader.wait(`\n\[.*\]\n`)
			}
			begin := time.Now()
			s.Process.Signal(signals[0])
			idle.stop(signals[0])
			idleTook := time.Since(begin)
			reader.wait(shutdown + "$")
			status := "^0 "
			if len(signals) > 1 {
				status = "^-1 "
				for range 50 { // until it has got ready for the second one
					s.Process.Signal(signals[1])
					<-time.After(20 * time.Millisecond)
				}
			}
			matches(t, s.result(), status)
			took := time.Since(begin)
			// Stalled clients are disconnected after 30 s. The server must not wait for that.
			expect(t, idleTook < took*3/4 && took < 25*time.Second, "it took %v, with stalled clients %v", idleTook, took)
		})
	}
}

// TestStalledConsole checks that a console that takes no output, as after Ctrl-S, or that is closed delays nobody:
// rounds go on, and the server can be stopped. When it exits, it waits for a console that is a little late.
func TestStalledConsole(t *testing.T) {
	t.Parallel()
	for _, state := range append([]string{"stalled", "closed"}, slices.Repeat([]string{"late"}, 10)...) {
		s := server(t, t.TempDir(), "CHAIN_FILE= ROUND=1ms")
		for _, pipe := range []io.Writer{s.Stdout, s.Stderr} {
			syscall.Syscall(syscall.SYS_FCNTL, pipe.(*os.File).Fd(), 1031, 4096) // F_SETPIPE_SZ
		}
		s.Stderr.Write(make([]byte, 4096)) // it is full
		if s.start(); state == "closed" {
			s.out.Close()
			s.stderr.out.Close()
		}
		c := s.joins(1)
		c.forges(30) // more than the console takes
		s.Process.Signal(os.Interrupt)
		c.wait(shutdown + "$")
		c.in.Close()
		if state == "late" {
			<-time.After(50 * time.Millisecond) // a server that does not wait has exited by then
			s.rest()
		}
		err := s.Wait()
		expect(t, err == nil, "%s: %v", state, err)
		if strings.Contains(s.text, "draw 31 seal: ") { // the last line
			return
		}
	}
	t.Error("the console lost its last lines, ten times")
}

// mount returns a new directory in which script, a shell script that gets its name as $0, has mounted a file system.
func mount(t *testing.T, script string) (dir string) {
	dir = t.TempDir()
	if out, err := exec.Command("sh", "-ec", script, dir).CombinedOutput(); err != nil {
		t.Skipf("only root can mount a file system: %s", out)
	}
	t.Cleanup(func() { exec.Command("umount", "-R", dir).Run() })
	return dir
}

// TestFullDisk checks that the first start fails without room for the genesis block, and that a draw is made once: its
// block is announced as soon as the disk has room, and not before.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := mount(t, `mount -t tmpfs -o size=64k tmpfs "$0"`)
	filler := filepath.Join(disk, "filler")
	fill := func() { os.WriteFile(filler, make([]byte, 1<<20), 0o644) }
	fill()
	matches(t, run(t, disk, ""), "^1 .*chain.jsonl: no space left on device.*\n$")
	os.Remove(filler)
	s := server(t, disk, "ROUND=20ms").start()
	fill()
	go react(s.dial().in.(net.Conn), "1\n50\n", "50\n") // the rest of the last pages of the files is still free
	block := s.stderr.wait(`cannot save block (\d+): .*: no space left on device.*\n`)[1]
	rich := s.joins(1e15)
	rich.types("50\n") // would win if the draw were repeated
	rich.wait(`\nblock \d+ has been drawn but not saved yet; .*\n` + bpmPrompt + "$")
	matches(t, run(t, disk, "verify"), verified)
	os.Remove(filler)
	rich.wait("^\nwinning validator: .*\nblock " + block + ", \\w+ 50: ticket 1 of 1\n")
	rich.wait(won) // the game continues
	s.stop(os.Interrupt)
	matches(t, run(t, disk, "verify"), verified)
}

// TestOutOfFiles opens connections until the server has no file descriptor left. Connected clients do not notice. The
// log says so once, in local time, and again when it is over. Under nohup, the server ignores SIGHUP, but not SIGTERM.
func TestOutOfFiles(t *testing.T) {
	t.Parallel()
	s := server(t, t.TempDir(), "TZ=Asia/Kolkata")
	s.Path, s.Args = "/bin/sh", []string{"sh", "-c", `ulimit -n 40; trap "" HUP; exec "$0"`, binary}
	first := s.start().joins(1)
	s.Process.Signal(syscall.SIGHUP)
	var clients []*testClient
	for range 60 {
		clients = append(clients, s.dial())
	}
	date := s.stderr.wait("^(.{19}) cannot accept .*too many open files.*\n$")[1]
	if zone, err := time.LoadLocation("Asia/Kolkata"); err == nil {
		at, _ := time.ParseInLocation("2006/01/02 15:04:05", date, zone)
		expect(t, time.Since(at).Abs() < time.Hour, "the log has %s, which is not local time", date)
	}
	first.forges(5) // time for more errors
	for _, c := range clients {
		c.in.Close()
	}
	s.stderr.wait("^.*accepting .*again\n$")
	s.joins(1)
	s.stop(syscall.SIGTERM)
	matches(t, first.rest(), shutdown+"$")
}

// TestClosedOutput plays without any standard stream, as some supervisors start a server.
func TestClosedOutput(t *testing.T) {
	t.Parallel()
	free, _ := net.Listen("tcp", "127.0.0.1:0")
	s := server(t, t.TempDir(), "ADDR="+free.Addr().String())
	free.Close()
	s.Path, s.Args = "/bin/bash", []string{"bash", "-c", `exec 2>/dev/null
		(for i in {1..300}; do sleep .1; : <>/dev/tcp/${ADDR/://} && echo "listening on $ADDR" && break; done) &
		exec "$0" <&- >&- 2>&-`, binary}
	s.start().joins(5).forges(1)
	s.stop(syscall.SIGTERM)
}

// TestBareEnvironments plays where little else is there, as in a container. The root is read-only. It holds the server
// and, on a file system of its own, a directory for its files. SIGTERM draws the open round and ends the server.
func TestBareEnvironments(t *testing.T) {
	t.Parallel()
	root := mount(t, `mount -t tmpfs tmpfs "$0"; CGO_ENABLED=0 go build -o "$0/server" proofofstake; mkdir "$0/data"
		mount -t tmpfs -o mode=777 tmpfs "$0/data"; mount -o remount,ro "$0"`)
	for name, attr := range map[string]syscall.SysProcAttr{
		"user":        {Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, // unprivileged
		"PID1":        {Cloneflags: syscall.CLONE_NEWPID},
		"no-terminal": {Setsid: true},
	} {
		t.Run(name, func(t *testing.T) {
			attr.Chroot, attr.Pdeathsig = root, syscall.SIGKILL
			bare := func(words string) *process {
				p := server(t, "/", "ROUND=1h CHAIN_FILE=/data/"+name+" DRAWS_FILE=/data/"+name+".draws "+words)
				p.Path, p.SysProcAttr = "/server", &attr
				return p
			}
			s := bare("").start()
			c := s.joins(5)
			c.types("50\n")
			c.wait(counted)
			s.stop(syscall.SIGTERM)
			matches(t, c.rest(), forged+sealed+bpmPrompt+shutdown+"$")
			matches(t, bare("verify").launch().result(), "^0 ok: 2 blocks,.*\nok: 1 draw\n")
		})
	}
}
