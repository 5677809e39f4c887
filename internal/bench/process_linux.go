package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that this one has started. It ends with the context, with
// stop, or when this process dies.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *output
	stderr *output
	exited chan struct{} // closed when it has ended
}

// start starts a program; only the main goroutine may, see main.
func start(ctx context.Context, dir string, environment []string, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, name, args...), stdout: newOutput(), stderr: newOutput(), exited: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), environment...)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait() // what it was about is seen from its output
		p.stdout.Close()
		close(p.exited)
	}()
	return p, nil
}

// stop kills the process and returns when it is gone. Nil is no process.
func (p *process) stop() {
	if p == nil {
		return
	}
	p.cmd.Process.Kill()
	<-p.exited
}

// fault is err with the last words of the process.
func (p *process) fault(err error) error {
	if last := p.stderr.tail(); last != "" {
		return fmt.Errorf("%w; it says: %s", err, last)
	}
	return err
}

// output is what a process writes to one of its outputs: read line by line, or
// just counted.
type output struct {
	mu      sync.Mutex
	changed *sync.Cond
	written int64
	unread  []byte // the first bytes that nobody has read, then the newest ones
	closed  bool
}

// unreadMax bounds what is kept for nobody.
const unreadMax = 64 << 10

// newOutput makes an output of which nothing was written yet.
func newOutput() *output {
	o := new(output)
	o.changed = sync.NewCond(&o.mu)
	return o
}

// Write keeps p.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.written += int64(len(p))
	o.unread = append(o.unread, p...)
	if n := len(o.unread); n > unreadMax {
		o.unread = append(o.unread[:0], o.unread[n-unreadMax/2:]...)
	}
	o.changed.Broadcast()
	return len(p), nil
}

// Close ends it: line no longer waits.
func (o *output) Close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.changed.Broadcast()
}

// line returns the next line.
func (o *output) line() (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if line, rest, found := bytes.Cut(o.unread, []byte("\n")); found {
			text := string(line)
			o.unread = rest
			return text, nil
		}
		if o.closed {
			return "", errors.New("the process has ended")
		}
		o.changed.Wait()
	}
}

// bytes is how much was written.
func (o *output) bytes() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.written
}

// tail is the end of what was written and not read.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(bytes.TrimSpace(o.unread[max(0, len(o.unread)-500):]))
}

// rss is the resident memory of the process in bytes.
func (p *process) rss() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(after)
	if len(fields) < 2 || fields[1] != "kB" {
		return 0, errors.New("/proc has no VmRSS in kB")
	}
	kb, err := strconv.ParseFloat(fields[0], 64)
	return kb * 1024, err
}

// cpu is the processor time that the process has used; it grows in steps of 10 ms.
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("/proc has a short stat")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// files is how many files the process has open.
func (p *process) files() (int, error) {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(open), err
}

// side is one of the servers that are compared, with its terminals.
type side struct {
	server       *process
	addr         string
	load         *process
	answer       int          // bytes of the answer to a stake
	announcement int          // bytes of an announcement
	announce     func() error // has the server make an announcement, soon
	proposer     net.Conn     // nil: none
}

// end ends its processes.
func (s *side) end() {
	if s.proposer != nil {
		s.proposer.Close()
	}
	s.load.stop() // first: so it resets its connections
	s.server.stop()
}

// newSide starts a server and its load process.
func (b *bench) newSide(environment []string, name string, args ...string) (*side, error) {
	s := &side{answer: len(stakeAnswer), announcement: len(announcement)}
	b.sides = append(b.sides, s)
	var err error
	if s.server, err = start(b.ctx, b.dir, environment, name, args...); err != nil {
		return nil, err
	}
	for s.addr == "" {
		line, err := s.server.stdout.line()
		if err != nil {
			return nil, s.server.fault(fmt.Errorf("%s does not listen: %w", filepath.Base(name), err))
		}
		s.addr = strings.TrimPrefix(line, "listening on ")
		if s.addr == line {
			s.addr = ""
		}
	}
	s.load, err = start(b.ctx, b.dir, nil, b.self, "load")
	return s, err
}

// ours starts the server that is measured; settings are name=value.
func (b *bench) ours(settings ...string) (*side, error) {
	s, err := b.newSide(append([]string{"ADDR=127.0.0.1:0", "ROUND=200ms", "BROADCAST=1h", "BROADCAST_BLOCKS=0", "CHAIN_FILE=", "MAX_CLIENTS=0"}, settings...), b.server)
	if err != nil {
		return nil, err
	}
	return s, s.propose()
}

// floor starts the floor; its chain is as long as given.
func (b *bench) floor(chain int) (*side, error) {
	s, err := b.newSide(nil, b.self, "floor", strconv.Itoa(chain))
	if err != nil {
		return nil, err
	}
	s.announce = func() error {
		// A server with rounds is idle until the round ends. So is the floor.
		if err := b.pause(100 * time.Millisecond); err != nil {
			return err
		}
		return s.order("announcement")
	}
	return s, nil
}

// order has the floor write to all of its terminals.
func (s *side) order(what string) error {
	_, err := io.WriteString(s.server.stdin, what+"\n")
	return err
}

// tutorial starts the tutorial's way of doing it.
func (b *bench) tutorial(round, broadcast time.Duration, blocks int) (*side, error) {
	s, err := b.newSide(nil, b.self, "tutorial", round.String(), broadcast.String(), strconv.Itoa(blocks))
	if err != nil {
		return nil, err
	}
	s.answer, s.announcement = len(bpmPrompt), len(winnerText)
	return s, s.propose()
}

// propose connects a validator of its own to s, who has a round won by proposing
// in it: no round is won otherwise.
func (s *side) propose() error {
	conn, err := stake(s.addr)
	if err != nil {
		return s.server.fault(err)
	}
	s.proposer = conn
	go io.Copy(io.Discard, conn)
	s.announce = func() error {
		_, err := io.WriteString(conn, proposalLine)
		return err
	}
	return nil
}

// deadline bounds every order to a load process.
const deadline = 30 * time.Second

// send sends an order to the load process.
func (s *side) send(r request) error {
	r.Deadline = deadline
	order, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = s.load.stdin.Write(append(order, '\n'))
	return err
}

// receive receives the answer to an order.
func (s *side) receive() (r reply, err error) {
	line, err := s.load.stdout.line()
	if err != nil {
		return r, s.load.fault(fmt.Errorf("the load process: %w", err))
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, fmt.Errorf("the load process says %q: %w", line, err)
	}
	if r.Error != "" {
		return r, s.server.fault(errors.New(r.Error))
	}
	return r, nil
}

// join connects and stakes count terminals and returns how long it took.
func (s *side) join(count int, others string, window int) (time.Duration, error) {
	if err := s.send(request{Op: "join", Addr: s.addr, Count: count, Answer: s.answer, Others: others, Window: window}); err != nil {
		return 0, err
	}
	r, err := s.receive()
	return r.Took, err
}

// await calls begin when the terminals are ready to get size bytes each and
// returns the time from the first that has them to the last.
func (s *side) await(r request, begin func() error) (reply, error) {
	r.Op = "await"
	if err := s.send(r); err != nil {
		return reply{}, err
	}
	ready, err := s.receive()
	if err != nil {
		return reply{}, err
	}
	if err := begin(); err != nil {
		return reply{}, err
	}
	result, err := s.receive()
	result.Stray = ready.Stray
	return result, err
}

// announced has the server make an announcement and returns the time from the
// first terminal that has it to the last.
func (s *side) announced() (time.Duration, error) {
	r, err := s.await(request{Bytes: s.announcement}, s.announce)
	if err == nil && r.Stray > 0 {
		err = fmt.Errorf("the terminals got %d bytes that nobody asked for", r.Stray)
	}
	return r.Took, err
}

// proposals has each terminal send a BPM and returns the time until all have
// been told that theirs counts.
func (s *side) proposals() (time.Duration, error) {
	if err := s.send(request{Op: "propose"}); err != nil {
		return 0, err
	}
	r, err := s.receive()
	return r.Took, err
}
