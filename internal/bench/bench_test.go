//go:build linux

package bench

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestSides has each side announce to a few terminals, and sees that all get as many bytes, and
// as many from the floor as from the server.
func TestSides(t *testing.T) {
	said := map[string]int{}
	for _, name := range []string{"ours", "floor", "tutorial"} {
		s := newSide(t, name)
		s.join(50, false)
		s.hear() // before it, those who joined early may hear of the others
		if stray := s.rest(); stray > 0 {
			t.Errorf("%s: the terminals got %d bytes that nobody asked for", name, stray)
		}
		s.hear()
		said[name] = s.all[1].got
		for _, terminal := range s.all[1:] {
			if terminal.got != said[name] {
				t.Errorf("%s: one terminal got %d bytes, another %d", name, said[name], terminal.got)
			}
		}
	}
	// The numbers of an announcement may have some digits more, or less.
	if ours, floor := said["ours"], said["floor"]; ours < floor-4 || ours > floor+4 {
		t.Errorf("an announcement is %d bytes, the floor's %d", ours, floor)
	}
}

// BenchmarkAnnouncement measures what terminals cost when they join, hear an announcement and
// idle. The other programs are measured with the fewest and with the most; the tutorial's
// way with the fewest, since whenever one joins it prints all of them.
func BenchmarkAnnouncement(b *testing.B) {
	for _, n := range []int{1000, 5000, 10000, 19000} {
		for _, name := range []string{"floor", "ours", "nats", "redis", "tutorial"} {
			other := name == "nats" || name == "redis"
			if other && n != 1000 && n != 19000 || name == "tutorial" && n != 1000 {
				continue
			}
			b.Run(fmt.Sprintf("terminals=%d/side=%s", n, name), func(b *testing.B) { benchmarkAnnouncement(b, name, n) })
		}
	}
}

// benchmarkAnnouncement does that with n terminals of one side.
func benchmarkAnnouncement(b *testing.B, name string, n int) {
	s := newSide(b, name)
	joins := s.join(n, false)
	if name == "nats" {
		time.Sleep(2500 * time.Millisecond) // after 2 s it once looks at each connection
	}
	for range 2 { // warms up what the later ones use
		s.hear()
	}
	memory := s.memory() - s.rss
	used := s.announcements(b)
	const watched = 400 * time.Millisecond
	time.Sleep(watched) // some have work left after an announcement
	before := s.cpu()
	time.Sleep(watched)
	b.ReportMetric(100*(s.cpu()-before).Seconds()/watched.Seconds(), "idle-%")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N*n), "server-µs/terminal")
	b.ReportMetric(memory/1024/float64(n), "KiB/terminal")
	b.ReportMetric(joins, "joins/s")
}

// BenchmarkProposals measures how fast one proposal from each terminal is taken, in one round.
func BenchmarkProposals(b *testing.B) {
	const n = 5000
	for _, name := range []string{"floor", "ours"} {
		b.Run(fmt.Sprintf("terminals=%d/side=%s", n, name), func(b *testing.B) {
			s := newSide(b, name, "ROUND=500ms")
			s.join(n, false)
			var all []float64
			for b.Loop() {
				s.rest()
				started := time.Now()
				for i := range s.all[1:] {
					s.must(s.all[1+i].write(proposalLine), "proposing")
				}
				_, last := s.allSee(accepted, 0)
				all = append(all, n/last.Sub(started).Seconds())
				if name == "ours" { // the floor has no rounds
					s.allSee(winner, 0)
				}
			}
			report(b, all, "proposals/s")
		})
	}
}

// withChain starts a side with a chain of so many blocks, and with terminals.
func withChain(b *testing.B, name string, blocks int, every time.Duration, terminals int, stuck bool) *side {
	b.Helper()
	file := filepath.Join(b.TempDir(), "chain")
	if err := writeChain(file, blocks); err != nil {
		b.Fatal(err)
	}
	s := newSide(b, name, "BROADCAST="+every.String(), "CHAIN_FILE="+file)
	s.join(terminals, stuck)
	return s
}

// BenchmarkStuck measures whether terminals wait for others that do not read.
func BenchmarkStuck(b *testing.B) {
	const every = 2 * time.Second
	for _, others := range []string{"none", "read", "stuck"} {
		b.Run("others="+others+"/side=ours", func(b *testing.B) {
			n := 2000
			if others == "none" {
				n = 1000
			}
			s := withChain(b, "ours", 600, every, n, others == "stuck")
			// A broadcast fills what the kernel holds for the stuck ones. From then
			// until they are cut off, output waits for them in the server.
			s.allSee("]\n", 0)
			full, due := time.Now(), time.Now().Add(every)
			var all []float64
			for b.Loop() {
				if time.Until(due) < 500*time.Millisecond {
					s.allSee("]\n", 0)
					due = time.Now().Add(every)
				}
				all = append(all, s.hear())
			}
			if time.Since(full) > 9*time.Second {
				b.Fatal("stuck terminals may have been cut off: measure fewer announcements (-benchtime)")
			}
			report(b, all, "ms/announcement")
		})
	}
}

// BenchmarkFlood measures what a few terminals that send as fast as they can do to quiet ones.
func BenchmarkFlood(b *testing.B) {
	for _, name := range []string{"ours", "tutorial"} {
		for _, flood := range []int{0, flooders} {
			b.Run(fmt.Sprintf("flooders=%d/side=%s", flood, name), func(b *testing.B) {
				s := newSide(b, name)
				s.join(1000, false)
				s.hear()
				memory, flooder := s.memory(), 0
				if flood > 0 {
					flooder = start(b, exec.Command(self), "BENCH_ROLE=flood", fmt.Sprintf("ADDR=127.0.0.1:%d", s.port))
				}
				started := time.Now()
				used := s.announcements(b)
				b.ReportMetric(100*used.Seconds()/time.Since(started).Seconds(), "server-%")
				b.ReportMetric((s.memory()-memory)/1024, "KiB-added")
				if ended, _ := syscall.Wait4(flooder, nil, syscall.WNOHANG, nil); flood > 0 && ended != 0 {
					b.Fatal("the flood was over before its time")
				}
			})
		}
	}
}

// BenchmarkBroadcast measures how fast a long chain goes to all terminals; the tutorial's way with
// few of them, since it makes it up anew for each.
func BenchmarkBroadcast(b *testing.B) {
	const every = 400 * time.Millisecond // longer than one takes
	for _, n := range []int{100, 1000} {
		for _, name := range []string{"floor", "ours", "tutorial"} {
			if name == "tutorial" && n > 100 {
				continue
			}
			b.Run(fmt.Sprintf("terminals=%d/side=%s", n, name), func(b *testing.B) {
				s := withChain(b, name, 1000, every, n, false)
				s.broadcast(name, every, 0)
				size := s.all[1].got
				var all []float64
				for b.Loop() {
					all = append(all, s.broadcast(name, every, size))
				}
				b.ReportMetric(float64(n*size)/1e3/report(b, all, "ms/broadcast"), "MB/s")
			})
		}
	}
}

// broadcast has all terminals sent the chain, of so many bytes if that is known, and returns the time
// from the first one that has it to the last, in ms. Broadcasts are due as far apart as
// the terminals joined; when the server was halted, all are due.
func (s *side) broadcast(name string, every time.Duration, size int) float64 {
	s.tb.Helper()
	s.rest()
	if name == "floor" {
		s.speak(orderBroadcast)
	} else {
		s.must(syscall.Kill(s.pid, syscall.SIGSTOP), "halting the server")
		time.Sleep(every)
		s.must(syscall.Kill(s.pid, syscall.SIGCONT), "resuming the server")
	}
	first, last := s.allSee("]\n", size)
	return 1e3 * last.Sub(first).Seconds()
}
