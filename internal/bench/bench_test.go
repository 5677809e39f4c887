//go:build linux

package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"proofofstake/internal/lineconn"
)

// TestSides has each side announce to a few terminals, and sees that all get as many bytes, no more
// than that, and as many from the floor as from the server.
func TestSides(t *testing.T) {
	for _, name := range []string{"ours", "floor", "tutorial"} {
		size := len(announcement)
		if name == "tutorial" {
			size = len(winner + anyHash + "\n")
		}
		s := newSide(t, name)
		s.join(50)
		s.hear() // before it, those who joined early may hear of the others
		s.hear()
		s.rest()
		for _, terminal := range s.all {
			// The numbers of an announcement may have some digits more, or less.
			if got := terminal.got; got != s.all[0].got || got < size-4 || got > size+4 {
				t.Errorf("%s: one terminal got %d bytes, another %d; an announcement has %d", name, s.all[0].got, got, size)
			}
		}
	}
}

// each runs a benchmark with so many terminals of each side.
func each(b *testing.B, n int, sides string, run func(b *testing.B, name string, n int)) {
	for _, name := range strings.Fields(sides) {
		b.Run(fmt.Sprintf("terminals=%d/side=%s", n, name), func(b *testing.B) { run(b, name, n) })
	}
}

// BenchmarkAnnouncement measures what terminals cost when they join, hear an announcement and
// idle. The other programs are measured with the fewest and with the most; the tutorial's
// way with the fewest, since whenever one joins it prints all of them.
func BenchmarkAnnouncement(b *testing.B) {
	each(b, 1000, "floor ours nats redis tutorial", benchmarkAnnouncement)
	each(b, 5000, "floor ours", benchmarkAnnouncement)
	each(b, 10000, "floor ours", benchmarkAnnouncement)
	each(b, 19000, "floor ours nats redis", benchmarkAnnouncement)
}

// benchmarkAnnouncement does that with n terminals of one side.
func benchmarkAnnouncement(b *testing.B, name string, n int) {
	s := newSide(b, name)
	before := s.memory()
	joins := s.join(n)
	if name == "nats" {
		time.Sleep(2500 * time.Millisecond) // after 2 s it once looks at each connection
	}
	for range 2 { // warms up what the later ones use
		s.hear()
	}
	memory := s.memory() - before
	started := s.cpu()
	turns(b, "ms/announcement", s.hear)
	used := s.cpu() - started
	const watched = 400 * time.Millisecond
	time.Sleep(watched) // some have work left after an announcement
	rested := s.cpu()
	time.Sleep(watched)
	b.ReportMetric(100*(s.cpu()-rested).Seconds()/watched.Seconds(), "idle-%")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N*n), "server-µs/terminal")
	b.ReportMetric(memory/1024/float64(n), "KiB/terminal")
	b.ReportMetric(joins, "joins/s")
}

// turns measures something in each turn of the benchmark's loop, reports the middle one of the
// figures and returns it.
func turns(b *testing.B, unit string, measure func() float64) float64 {
	var all []float64
	for b.Loop() {
		all = append(all, measure())
	}
	slices.Sort(all)
	b.ReportMetric(0, "ns/op") // most of it is waiting
	b.ReportMetric(all[len(all)/2], unit)
	return all[len(all)/2]
}

// BenchmarkProposals measures how fast one proposal from each terminal is taken, in one round.
func BenchmarkProposals(b *testing.B) {
	each(b, 5000, "floor ours", func(b *testing.B, name string, n int) {
		s := newSide(b, name, "ROUND=500ms")
		s.join(n)
		turns(b, "proposals/s", func() float64 {
			if name == "ours" { // the floor has no rounds
				s.hear()
			}
			s.rest()
			started := time.Now()
			for _, t := range s.all {
				s.must(syscall.Sendto(t.fd, []byte(proposalLine), 0, nil), "proposing")
			}
			s.allSee(accepted, 0)
			return float64(n) / time.Since(started).Seconds()
		})
	})
}

// withChain starts a side with a chain of so many blocks.
func withChain(b *testing.B, name string, blocks int, every time.Duration) *side {
	b.Setenv("BLOCKS", strconv.Itoa(blocks))
	var lines bytes.Buffer
	out := json.NewEncoder(&lines)
	for _, block := range newChain() {
		out.Encode(block)
	}
	file := filepath.Join(b.TempDir(), "chain")
	if err := os.WriteFile(file, lines.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	return newSide(b, name, "BROADCAST="+every.String(), "CHAIN_FILE="+file)
}

// BenchmarkStuck measures whether terminals wait for others that do not read.
func BenchmarkStuck(b *testing.B) {
	for _, others := range []struct {
		name        string
		read, stuck int
	}{{"none", 0, 0}, {"read", 1000, 0}, {"stuck", 0, 1000}} {
		b.Run("others="+others.name+"/side=ours", func(b *testing.B) {
			s := withChain(b, "ours", 600, time.Second)
			for range others.stuck {
				s.connect(true)
			}
			s.join(1000 + others.read)
			started := time.Now()
			turns(b, "ms/announcement", func() float64 {
				// A broadcast fills what the kernel holds for the stuck ones. From the first
				// until they are cut off, output waits for them in the server.
				s.allSee("]\n", 0)
				return s.hear()
			})
			if time.Since(started) > lineconn.Patience {
				b.Fatal("stuck terminals may have been cut off: measure fewer announcements (-benchtime)")
			}
		})
	}
}

// BenchmarkFlood measures what a few terminals that send as fast as they can do to quiet ones.
func BenchmarkFlood(b *testing.B) {
	for _, name := range []string{"ours", "tutorial"} {
		for _, flood := range []int{0, flooders} {
			b.Run(fmt.Sprintf("flooders=%d/side=%s", flood, name), func(b *testing.B) {
				s := newSide(b, name)
				s.join(1000)
				s.hear()
				memory, flooder := s.memory(), 0
				if flood > 0 {
					flooder = s.start(exec.Command(self), "BENCH_ROLE=flood", fmt.Sprintf("ADDR=127.0.0.1:%d", s.port))
				}
				started, before := time.Now(), s.cpu()
				turns(b, "ms/announcement", s.hear)
				b.ReportMetric(100*(s.cpu()-before).Seconds()/time.Since(started).Seconds(), "server-%")
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
	run := func(b *testing.B, name string, n int) {
		s := withChain(b, name, 1000, every)
		s.join(n)
		s.broadcast(name, every, 0)
		size := s.all[0].got
		middle := turns(b, "ms/broadcast", func() float64 { return s.broadcast(name, every, size) })
		b.ReportMetric(float64(n*size)/1e3/middle, "MB/s")
	}
	each(b, 100, "floor ours tutorial", run)
	each(b, 1000, "floor ours", run)
}

// broadcast has all terminals sent the chain, of so many bytes if that is known, which takes so many
// ms. Broadcasts are due as far apart as the terminals joined; when the server was halted, all are due.
func (s *side) broadcast(name string, every time.Duration, size int) float64 {
	s.rest()
	if name == "floor" {
		io.WriteString(s.speaker, orderBroadcast)
	} else {
		s.must(syscall.Kill(s.pid, syscall.SIGSTOP), "halting the server")
		time.Sleep(every)
		s.must(syscall.Kill(s.pid, syscall.SIGCONT), "resuming the server")
	}
	return s.allSee("]\n", size)
}
