package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// notes say how to read the table.
const notes = `
A figure that was measured several times is a median, with the least and the greatest in parentheses.
"ratio" is this server to the floor, unless it says otherwise; there is no floor where this server is compared with itself.

- The floor is a bare Go server with one goroutine blocked in a 64-byte read for each connection. It answers each
  line with as many bytes as this server does; for an announcement or a chain it writes as many bytes to all
  sockets, in a loop on each of GOMAXPROCS goroutines.
- The tutorial's way is two more goroutines for each connection, announcements over one unbuffered channel that all
  handlers read, the list of validators printed whenever one joins, the chain encoded for each terminal; with one
  mutex around all that is shared, since the original dies of "concurrent map writes" when two terminals join
  at the same moment. "-" is not measured: it prints the whole list of validators whenever one joins, so that the
  time grows with the square of their number (5,000 take some twenty seconds); its answer to a proposal does not say
  whether it counts; and what terminals that do not read leave of an announcement, others get twice.
- Joining is the time from the first connect to the last answer to a stake, with 256 terminals at it at any time. They
  come in five waves, in turns with those of the floor.
- Memory is the server's resident memory when all terminals have staked, have had some announcements and are
  idle, less that before they came, divided by their number.
- Idle processor time is counted by the kernel in steps of 10 ms; it is watched for 4 s.
- An announcement, a broadcast: the time from the first terminal that has all of it to the last, to 0.2 ms. Each
  terminal is checked to get all its bytes, no more, and the same ones as the others.
`

// pick is full, or quick in a quick run.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// nothing is for what begins by itself.
func nothing() error { return nil }

// measureProposals measures how fast one proposal from each terminal is taken.
func (b *bench) measureProposals() error {
	n := pick(b, 5000, 500)
	ours, err := b.ours(pick(b, "ROUND=2s", "ROUND=300ms"))
	if err != nil {
		return err
	}
	floor, err := b.floor(0)
	if err != nil {
		return err
	}
	for _, s := range []*side{ours, floor} {
		if _, err := s.join(n, noOthers, joining); err != nil {
			return err
		}
	}
	r := row{group: groupRest, what: "proposals/s, one from each terminal", terminals: n}
	for i := range pick(b, 8, 3) {
		// When the announcement has come, a round has just begun. The winner, one of the
		// terminals, gets more than the others.
		if _, err := ours.await(request{Bytes: ours.announcement, Extra: true}, ours.announce); err != nil {
			return err
		}
		took, err := ours.proposals()
		if err != nil {
			return err
		}
		floorTook, err := floor.proposals()
		if err != nil {
			return err
		}
		if i > 0 { // the first one warms up
			r.ours = append(r.ours, float64(n)/took.Seconds())
			r.floor = append(r.floor, float64(n)/floorTook.Seconds())
		}
	}
	b.add(r, "proposals")
	return nil
}

// measureStuck measures whether terminals wait for others that do not read.
func (b *bench) measureStuck() error {
	const blocks = 600 // far more than the kernel holds for a stuck terminal
	every := pick(b, 8*time.Second, 2*time.Second)
	half := pick(b, 1000, 100)
	var sides []*side
	var size int
	var next time.Time // the second broadcast
	for _, others := range []string{stuckOthers, readOthers, noOthers} {
		// Two servers never share a file.
		file := filepath.Join(b.dir, "chain-"+others)
		var err error
		if size, err = writeChain(file, blocks); err != nil {
			return err
		}
		s, err := b.ours("ROUND=150ms", "BROADCAST="+every.String(), "CHAIN_FILE="+file)
		if err != nil {
			return err
		}
		if next.IsZero() {
			next = time.Now().Add(2 * every)
		}
		count := 2 * half
		if others == noOthers {
			count = half
		}
		if _, err := s.join(count, others, joining); err != nil {
			return err
		}
		sides = append(sides, s)
	}
	stuck, read, alone := sides[0], sides[1], sides[2]
	files, err1 := stuck.server.files()
	rssBefore, err2 := stuck.server.rss()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}

	// The first broadcast fills what the kernel holds for the stuck ones. From
	// then until they are cut off, output waits for them in the server.
	chain := request{Bytes: size, Discard: true}
	_, err := stuck.await(chain, func() error {
		_, err := read.await(chain, func() error {
			_, err := alone.await(chain, nothing)
			return err
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("the broadcast that fills the buffers: %w", err)
	}
	what := fmt.Sprintf("announcement to %s, ms; ", number(float64(half)))
	toAlone := row{group: groupRest, what: what + "there are no others", terminals: half}
	toAll := row{group: groupRest, what: what + "as many others read, too", terminals: 2 * half}
	toReaders := row{group: groupRest, what: what + "as many others are stuck", terminals: 2 * half, target: ofRatio, atMost: 1.1}
	times, least := pick(b, 16, 4), pick(b, 8, 2)
	for i := range times {
		if time.Until(next) < 700*time.Millisecond {
			if i < least {
				return fmt.Errorf("after %d announcements the next broadcast is due: too slow to measure", i)
			}
			break
		}
		for _, m := range []struct {
			side *side
			to   *sample
		}{{stuck, &toReaders.ours}, {read, &toAll.ours}, {alone, &toAlone.ours}} {
			took, err := m.side.announced()
			if err != nil {
				return err
			}
			if i > 0 { // the first one warms up
				m.to.milliseconds(took)
			}
		}
	}
	toReaders.base = toAll.ours
	b.add(toAlone, "stuck")
	b.add(toAll, "stuck")
	b.add(toReaders, "stuck")

	rss, err := stuck.server.rss()
	if err != nil {
		return err
	}
	fact := fmt.Sprintf("Stuck: %d of %d terminals do not read %s KB of chain and the announcements after it. The server's memory was %s MB greater for all of that",
		half, 2*half, number(float64(size)/1e3), number((rss-rssBefore)/1e6))
	if !b.quick {
		// That it cuts them off shows that output waited for every one of them.
		cut, err := b.cutOff(stuck, files, half)
		if err != nil {
			return err
		}
		fact += fmt.Sprintf("; later it cut off %d of them, since they did not read", cut)
	}
	b.facts = append(b.facts, fact+".")
	return nil
}

// cutOff waits until the server has closed want of its files, at most 20 s, and
// returns how many it has closed.
func (b *bench) cutOff(s *side, before, want int) (closed int, err error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && closed < want; {
		if err := b.pause(200 * time.Millisecond); err != nil {
			return 0, err
		}
		files, err := s.server.files()
		if err != nil {
			return 0, err
		}
		closed = before - files
	}
	return closed, nil
}

// flooders is how many terminals flood.
const flooders = 8

// flooding is what a flood did.
type flooding struct {
	quiet, flooded sample  // announcements without and with the flood, in ms
	processor      float64 // that the server used, in % of a core
	memory         float64 // bytes by which it grew
	console        int64   // bytes that it wrote to its console
	report         floodReport
}

// flood has a few terminals of s send as fast as they can, for as long as lasts.
func (b *bench) flood(s *side, quiet int, lasts time.Duration) (f flooding, err error) {
	if _, err := s.join(quiet, noOthers, joining); err != nil {
		return f, err
	}
	p, err := start(b.ctx, b.dir, nil, b.self, "flood", s.addr, strconv.Itoa(flooders))
	if err != nil {
		return f, err
	}
	defer p.stop()
	if _, err := p.stdout.line(); err != nil {
		return f, p.fault(fmt.Errorf("the flood: %w", err))
	}

	// announcements measures some until d is over; nil: just to warm up.
	before, most := 0.0, 0.0
	announcements := func(to *sample, d time.Duration) error {
		for end := time.Now().Add(d); time.Now().Before(end); {
			took, err := s.announced()
			if err != nil {
				return err
			}
			if to != nil {
				to.milliseconds(took)
			}
			rss, err := s.server.rss()
			if err != nil {
				return err
			}
			most = max(most, rss)
		}
		return nil
	}
	if err := errors.Join(announcements(nil, lasts/20), announcements(&f.quiet, lasts/4)); err != nil {
		return f, err
	}
	if before, err = s.server.rss(); err != nil {
		return f, err
	}
	most = before
	cpu, err := s.server.cpu()
	if err != nil {
		return f, err
	}
	console := s.server.stdout.bytes() + s.server.stderr.bytes()
	started := time.Now()
	if _, err := p.stdin.Write([]byte("go\n")); err != nil {
		return f, err
	}
	if err := announcements(&f.flooded, lasts); err != nil {
		return f, err
	}
	cpuAfter, err := s.server.cpu()
	if err != nil {
		return f, err
	}
	f.processor = 100 * (cpuAfter - cpu).Seconds() / time.Since(started).Seconds()
	f.memory = most - before
	f.console = s.server.stdout.bytes() + s.server.stderr.bytes() - console
	p.stdin.Close()
	line, err := p.stdout.line()
	if err != nil {
		return f, p.fault(fmt.Errorf("the flood: %w", err))
	}
	if err := json.Unmarshal([]byte(line), &f.report); err != nil {
		return f, err
	}
	return f, errors.Join(announcements(nil, lasts/20), announcements(&f.quiet, lasts/4))
}

// measureFlood measures what a few terminals that send as fast as they can do to
// quiet ones.
func (b *bench) measureFlood() error {
	n := pick(b, 1000, 200)
	lasts := pick(b, 20*time.Second, time.Second)
	s, err := b.ours()
	if err != nil {
		return err
	}
	ours, err := b.flood(s, n, lasts)
	if err != nil {
		return err
	}
	b.end()
	if s, err = b.tutorial(200*time.Millisecond, time.Hour, 1); err != nil {
		return err
	}
	tutorial, err := b.flood(s, n, lasts/4)
	if err != nil {
		return fmt.Errorf("the tutorial's way: %w", err)
	}
	what := fmt.Sprintf("%d flood: ", flooders)
	b.add(row{group: groupRest, what: "announcement to the quiet, ms", terminals: n, ours: ours.quiet, tutorial: tutorial.quiet}, "flood")
	b.add(row{group: groupRest, what: what + "announcement to the quiet, ms", terminals: n, ours: ours.flooded, tutorial: tutorial.flooded,
		base: ours.quiet, target: ofRatio, atMost: 2}, "flood")
	b.add(row{group: groupRest, what: what + "processor time, with the announcements, % of a core", terminals: n, ours: sample{ours.processor}, tutorial: sample{tutorial.processor}}, "flood")
	b.add(row{group: groupRest, what: what + "memory that they add, MB", terminals: n, ours: sample{ours.memory / 1e6}, tutorial: sample{tutorial.memory / 1e6},
		target: ofOurs, atMost: 50}, "flood")
	b.facts = append(b.facts,
		fmt.Sprintf("Flood: for %v %d terminals send proposals as fast as they can and read the answers. They got %s KB of answers, the server closed %d of them, forged %d blocks and wrote %s KB to its console.",
			lasts, flooders, number(float64(ours.report.Read)/1e3), ours.report.Closed, len(ours.flooded), number(float64(ours.console)/1e3)),
		fmt.Sprintf("The same for %v with the tutorial's way: %s KB of answers, %d blocks, %s KB to its console; its memory grows with the length of a round, here 200 ms.",
			lasts/4, number(float64(tutorial.report.Read)/1e3), len(tutorial.flooded), number(float64(tutorial.console)/1e3)))
	return nil
}

// measureBroadcast measures how fast a long chain goes to all terminals.
func (b *bench) measureBroadcast() error {
	const blocks = 1000
	n := pick(b, 1000, 100)
	every := pick(b, 3*time.Second, 500*time.Millisecond)
	file := filepath.Join(b.dir, "chain")
	size, err := writeChain(file, blocks)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("broadcast of %s blocks, %s KB, ", number(blocks), number(float64(size)/1e3))
	took := row{group: groupRest, what: what + "ms", terminals: n}
	rate := row{group: groupRest, what: what + "MB/s", terminals: n}
	add := func(took, rate *sample, size int, d time.Duration) {
		took.milliseconds(d)
		*rate = append(*rate, float64(n*size)/1e6/d.Seconds())
	}

	// The tutorial's broadcasts come when they come: they cannot take turns. One is
	// measured, since the next ones follow before it is over everywhere.
	tutorial, err := b.tutorial(time.Hour, 2*every, blocks)
	if err != nil {
		return err
	}
	if _, err := tutorial.join(n, noOthers, n); err != nil {
		return err
	}
	bare := size - len("\n") - len(bpmPrompt)
	r, err := tutorial.await(request{Bytes: bare, Extra: true}, nothing)
	if err != nil {
		return fmt.Errorf("the tutorial's way: %w", err)
	}
	add(&took.tutorial, &rate.tutorial, bare, r.Took)
	b.end()

	floor, err := b.floor(size)
	if err != nil {
		return err
	}
	if _, err := floor.join(n, noOthers, n); err != nil {
		return err
	}
	ours, err := b.ours("BROADCAST="+every.String(), "CHAIN_FILE="+file)
	if err != nil {
		return err
	}
	if _, err := ours.join(n, noOthers, n); err != nil {
		return err
	}
	// The broadcasts are due as far apart as the terminals joined. Those that fall due
	// while the server is halted are sent at once, and so are all later ones.
	err = errors.Join(ours.server.cmd.Process.Signal(syscall.SIGSTOP), b.pause(every+100*time.Millisecond))
	if err != nil {
		return err
	}
	resume := func() error { return ours.server.cmd.Process.Signal(syscall.SIGCONT) }
	for i := range pick(b, 8, 3) {
		order := request{Bytes: size, Discard: i > 0}
		r, err := ours.await(order, resume)
		if err != nil {
			return err
		}
		floorR, err := floor.await(order, func() error { return floor.order("chain") })
		if err != nil {
			return err
		}
		if i > 0 {
			add(&took.ours, &rate.ours, size, r.Took)
			add(&took.floor, &rate.floor, size, floorR.Took)
		}
		resume = nothing
	}
	b.add(took, "broadcast")
	b.add(rate, "broadcast")
	return nil
}
