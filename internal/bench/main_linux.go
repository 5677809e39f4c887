// Command bench measures the server against a floor: what a Go server costs that does
// nothing but the sockets' work. It prints one table, measured in one run, on
// this machine, over loopback:
//
//	go run ./internal/bench [-quick] [-terminals 1000,5000,10000,19000] [-only announce,flood]
//
// The server, the floor and the tutorial's way of doing it are processes of their own,
// and so is the load: the terminals of each server are held by one process, which is
// the same program for all of them and serves its sockets with epoll on one thread.
// What is compared is measured in turns: this server, the floor, this server, the
// floor ...
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// init keeps main on the main thread: what it starts is to die with it, and Linux
// takes the end of the starting thread for that.
func init() { runtime.LockOSThread() }

func main() {
	modes := map[string]func(args []string) error{
		"load":     func([]string) error { return runLoad() },
		"floor":    runFloor,
		"tutorial": runTutorial,
		"flood":    runFlood,
	}
	run := runBench
	args := os.Args[1:]
	if len(args) > 0 && modes[args[0]] != nil {
		run, args = modes[args[0]], args[1:]
	}
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	ctx    context.Context
	self   string // this program
	server string // the server's
	dir    string // temporary, and without an .env
	quick  bool
	only   []string
	sides  []*side // now running
	busy   string  // the load average before: what else ran
	rows   []row
	facts  []string // what does not fit into the table
}

// sections are the parts of a run, in the order of the table.
var sections = []struct {
	name string
	run  func(b *bench) error
}{
	{"proposals", (*bench).measureProposals},
	{"stuck", (*bench).measureStuck},
	{"flood", (*bench).measureFlood},
	{"broadcast", (*bench).measureBroadcast},
}

// runBench makes a run and prints the table of what it has measured, even if it fails.
func runBench(args []string) (err error) {
	all := []string{"join", "memory", "idle", "announce"}
	for _, section := range sections {
		all = append(all, section.name)
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	terminals := flags.String("terminals", "", "how many terminals, a comma between two numbers (default 1000,5000,10000,19000)")
	quick := flags.Bool("quick", false, "few terminals, few repetitions: to see that it works")
	only := flags.String("only", "", "measure this only, of "+strings.Join(all, ","))
	flags.Parse(args)

	b := &bench{quick: *quick}
	var stop context.CancelFunc
	b.ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var counts []int
	if *terminals == "" {
		*terminals = pick(b, "1000,5000,10000,19000", "200")
	}
	for _, field := range strings.Split(*terminals, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 2 {
			return fmt.Errorf("-terminals %q: want numbers such as 1000,5000", *terminals)
		}
		counts = append(counts, n)
	}
	if *only != "" {
		b.only = strings.Split(*only, ",")
		for _, name := range b.only {
			if !slices.Contains(all, name) {
				return fmt.Errorf("-only %q: want some of %s", *only, strings.Join(all, ","))
			}
		}
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if busy, err := os.ReadFile("/proc/loadavg"); err == nil {
		b.busy, _, _ = strings.Cut(string(busy), " ")
	}
	if b.server, err = b.build(); err != nil {
		return err
	}
	defer b.end()

	started := time.Now()
	var failed []error
	// fail notes a failure, which is not that of what comes next, and cleans up.
	fail := func(err error, what string) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
		b.end()
	}
	if b.wants("join", "memory", "idle", "announce") {
		for _, n := range counts {
			if b.ctx.Err() != nil {
				break
			}
			b.say("%d terminals", n)
			fail(b.measureTerminals(n), fmt.Sprintf("%d terminals", n))
		}
	}
	for _, section := range sections {
		if b.wants(section.name) && b.ctx.Err() == nil {
			b.say("%s", section.name)
			fail(section.run(b), section.name)
		}
	}
	b.print(os.Stdout, time.Since(started))
	if b.ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return errors.Join(failed...)
}

// wants reports whether one of names is to be measured.
func (b *bench) wants(names ...string) bool {
	return b.only == nil || slices.ContainsFunc(names, func(name string) bool { return slices.Contains(b.only, name) })
}

// pause waits for d.
func (b *bench) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// add adds a row to the table if name is to be measured. A quick run says nothing
// of targets.
func (b *bench) add(r row, name string) {
	if b.quick {
		r.target = noTarget
	}
	if b.wants(name) {
		b.rows = append(b.rows, r)
	}
}

// say tells of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// build builds the server of the module that the working directory is in.
func (b *bench) build() (string, error) {
	list := exec.CommandContext(b.ctx, "go", "list", "-m", "-f", "{{.Dir}}")
	list.Stderr = os.Stderr
	root, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("go list: cannot find the module: %w", err)
	}
	server := filepath.Join(b.dir, "proofofstake")
	build := exec.CommandContext(b.ctx, "go", "build", "-o", server, ".")
	build.Dir = strings.TrimSpace(string(root))
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("go build: cannot build the server in %s: %w", build.Dir, err)
	}
	return server, nil
}

// end ends what is running.
func (b *bench) end() {
	for _, s := range b.sides {
		s.end()
	}
	b.sides = nil
}

// print prints the table and what one must know to read it.
func (b *bench) print(w *os.File, took time.Duration) {
	slices.SortStableFunc(b.rows, func(x, y row) int { return cmp.Compare(x.group, y.group) })
	fmt.Fprintf(w, "\nMeasured in one run of %v: %s, %s/%s, GOMAXPROCS %d. Load average before: %s.\n\n",
		took.Round(time.Second), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), b.busy)
	printTable(w, b.rows)
	fmt.Fprint(w, notes)
	for _, fact := range b.facts {
		fmt.Fprintf(w, "- %s\n", fact)
	}
}
