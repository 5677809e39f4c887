package linefile

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var errDisk = errors.New("the disk is broken") // what a testDisk fails with

// testDisk is a file on which calls fail if a test says so.
type testDisk struct {
	*os.File
	full          int64  // it takes no byte from this offset on; 0: it takes all
	broken        string // which of "sync", "cut" and "stat" fail
	meanwhile     func() // happens while it is synced
	synced        string // what it held at the last sync
	reads, writes int64  // in bytes; how many
}

// openTest makes a file of that content and opens it on a disk on which nothing fails yet.
func openTest(t *testing.T, content string) (*testDisk, *File) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lines")
	if err := edit(name, content, 1); err != nil {
		t.Fatal(err)
	}
	file, err := openLocked(name)
	if err != nil {
		t.Fatal(err)
	}
	d := &testDisk{File: file, meanwhile: func() {}}
	f, err := open(name, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return d, f
}

// content returns what the file holds.
func (d *testDisk) content() string {
	data, _ := os.ReadFile(d.Name())
	return string(data)
}

func (d *testDisk) fault(of string) error {
	if strings.Contains(d.broken, of) {
		return errDisk
	}
	return nil
}

func (d *testDisk) ReadAt(p []byte, at int64) (int, error) {
	d.reads += int64(len(p))
	return d.File.ReadAt(p, at)
}

func (d *testDisk) WriteAt(p []byte, at int64) (int, error) {
	d.writes++
	if d.full == 0 || at+int64(len(p)) <= d.full {
		return d.File.WriteAt(p, at)
	}
	n, _ := d.File.WriteAt(p[:max(0, d.full-at)], at)
	return n, errDisk
}

func (d *testDisk) Truncate(size int64) error {
	d.writes++
	if err := d.fault("cut"); err != nil {
		return err
	}
	return d.File.Truncate(size)
}

func (d *testDisk) Sync() error {
	d.meanwhile()
	if err := d.fault("sync"); err != nil {
		return err
	}
	d.synced = d.content()
	return nil
}

func (d *testDisk) Stat() (os.FileInfo, error) {
	if err := d.fault("stat"); err != nil {
		return nil, err
	}
	return d.File.Stat()
}

// edit writes a file as others do, at the second when, which is long ago.
func edit(name, content string, when int64) error {
	return errors.Join(os.WriteFile(name, []byte(content), 0o644), os.Chtimes(name, time.Time{}, time.Unix(when, 0)))
}

// read returns the whole lines and the tail.
func read(t *testing.T, l *Lines) (whole, tail string) {
	t.Helper()
	for n := 1; l.Scan(); n++ {
		if whole += string(l.Bytes()) + "\n"; l.Number() != n {
			t.Errorf("line %d has number %d", n, l.Number())
		}
	}
	if l.Scan() || l.Err() != nil {
		t.Error("after the end:", l.Err())
	}
	return whole, string(l.Tail())
}

// do does the steps in turn: A appends a line, "new"; K keeps the tail; C cuts it off.
func do(f *File, steps string) (err error) {
	does := map[rune]func() error{'A': func() error { return f.Append([]byte("new")) }, 'K': f.KeepTail, 'C': f.CutTail}
	for _, step := range steps {
		err = errors.Join(err, does[step]())
	}
	return err
}

// A file cut at any byte, as by a crash, has whole lines and a tail, and goes on as its owner decides.
func TestCutAnywhere(t *testing.T) {
	const content = "one\n\nthree\nfour\n"
	for at := range len(content) + 1 {
		whole, kept := content[:strings.LastIndex(content[:at], "\n")+1], content[:at]
		tail := content[len(whole):at]
		if tail != "" {
			kept += "\n"
		}
		for steps, want := range map[string]string{
			"": whole + tail, "A": whole + "new\n", "K": kept, "C": whole,
			"KA": kept + "new\n", "CKA": whole + "new\n", "AKCA": whole + "new\nnew\n",
		} {
			d, f := openTest(t, content[:at])
			if got, rest := read(t, f.Lines(5)); got != whole || rest != tail || f.TailSize() != int64(len(tail)) {
				t.Errorf("cut at %d: it reads as %q and %q, tail size %d", at, got, rest, f.TailSize())
			}
			err := do(f, steps)
			if err != nil || d.content() != want || d.writes > 0 && d.synced != want {
				t.Errorf("cut at %d, then %s: %v; it holds %q, want %q, and synced is %q", at, steps, err, d.content(), want, d.synced)
			}
			if got, rest := read(t, f.Lines(5)); got+rest != want || steps != "" && f.TailSize() != 0 {
				t.Errorf("cut at %d, then %s: it reads as %q and %q, tail size %d", at, steps, got, rest, f.TailSize())
			}
		}
	}
}

// Whatever fails, at whatever byte, it is said, and the file is as before: at the latest when it can be. The remains of a
// line that could not be kept are a tail to be cut, not to be kept.
func TestBrokenDisk(t *testing.T) {
	for _, broken := range []string{"", "sync", "cut", "stat", "sync cut", "sync stat", "cut stat", "sync cut stat"} {
		for full := int64(4); full <= 8; full++ {
			for _, c := range []struct{ before, step, mended, after string }{
				{"one\n", "A", "A", "one\nnew\n"},
				{"one\n", "A", "KC", "one\n"},
				{"one\nnew", "K", "K", "one\nnew\n"},
			} {
				d, f := openTest(t, c.before)
				d.full, d.broken = full, broken
				name, unseen := fmt.Sprintf("%s of %q, full at %d, broken %s: ", c.step, c.before, full, broken), d.fault("stat") != nil
				err := do(f, c.step)
				if (err == nil) != (full == 8 && d.fault("sync") == nil && !unseen) {
					t.Error(name, err)
				}
				if err == nil {
					continue
				}
				if whole, tail := read(t, f.Lines(5)); whole+tail != c.before || d.fault("cut") == nil && d.content() != c.before {
					t.Errorf("%sit reads as %q and %q, and holds %q", name, whole, tail, d.content())
				}
				if !unseen && f.TailSize() != int64(len(d.content())-4) {
					t.Errorf("%sof %q the tail size is %d", name, d.content(), f.TailSize())
				}
				if c.mended == "KC" && unseen {
					continue // nobody knows of the remains
				}
				d.full, d.broken = 0, ""
				if err := do(f, c.mended); err != nil || d.content() != c.after || d.synced != c.after && c.mended != "KC" {
					t.Errorf("%smended by %s: %v, and it holds %q, synced is %q", name, c.mended, err, d.content(), d.synced)
				}
			}
		}
	}
}

// A failure loses nothing: neither a tail that could not be cut, nor the sight of what others did meanwhile.
func TestNothingLost(t *testing.T) {
	d, f := openTest(t, "one\ntail")
	d.broken = "cut"
	if f.CutTail() == nil || do(f, "A") == nil || f.KeepTail() != nil || d.synced != "one\ntail\n" {
		t.Errorf("a tail that could not be cut: %q", d.synced)
	}
	d.full, d.broken = 12, "cut stat" // nobody sees what is left
	do(f, "A")
	d.broken = ""
	os.Truncate(d.Name(), 6)
	if err := do(f, "A"); !errors.Is(err, ErrChanged) || d.content() != "one\nta" {
		t.Errorf("somebody else has cut whole lines: %v, and it holds %q", err, d.content())
	}
	d, f = openTest(t, "")
	d.meanwhile = func() { edit(f.name, "two\n", 2) }
	if first, second := do(f, "A"), do(f, "A"); first != nil || !errors.Is(second, ErrChanged) {
		t.Error("edited while a line was synced:", first, second)
	}
}

// A file that somebody else has changed is not written to until it is as it was.
func TestChangedByOthers(t *testing.T) {
	move := func(name string) error { return os.Rename(name, name+".old") }
	for what, change := range map[string]func(name string) error{
		"it is gone":             move,
		"it is another file now": func(name string) error { return errors.Join(move(name), edit(name, "8 bytes\n", 2)) },
		"it was edited":          func(name string) error { return edit(name, "one\nmine", 2) },
		"it has 12 bytes now":    func(name string) error { return edit(name, "one\ntailmine", 2) },
		"it has 4 bytes now":     func(name string) error { return os.Truncate(name, 4) },
	} {
		for _, c := range []struct{ before, step string }{{"", "K"}, {"", "C"}, {"", "A"}, {"A", "A"}} {
			d, f := openTest(t, "one\ntail")
			if err := errors.Join(do(f, c.before), change(f.name)); err != nil { // either way it has 8 bytes before the change
				t.Fatal(err)
			}
			writes := d.writes
			err := do(f, c.step)
			if !errors.Is(err, ErrChanged) || !strings.HasPrefix(err.Error(), f.name) || !strings.HasSuffix(err.Error(), what) || d.writes != writes {
				t.Errorf("%s, then %s: %v, after %d writes", what, c.step, err, d.writes-writes)
			}
			if os.Rename(f.name+".old", f.name) == nil && do(f, c.step) != nil {
				t.Errorf("%s, moved back, %s fails", what, c.step)
			}
		}
	}
}

// A file that somebody else has changed can be given up for the one of that name; while that cannot be opened, nothing is written.
func TestReopen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lines")
	f, err := Open(name)
	if err = errors.Join(err, do(f, "A"), os.Rename(name, name+".old"), os.Mkdir(name, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := do(f, "A"); !errors.Is(err, ErrChanged) || f.Reopen() == nil || f.Reopen() == nil {
		t.Error("there is a folder of that name:", err)
	}
	if err := errors.Join(os.Remove(name), os.Rename(name+".old", name)); err != nil {
		t.Fatal(err)
	}
	if err := do(f, "A"); !errors.Is(err, ErrChanged) || !strings.HasSuffix(err.Error(), "it could not be opened again") {
		t.Error("it is back, and not opened:", err)
	}
	for _, want := range []string{"new\nnew\n", "new\n"} { // what was there, and a new one
		if err := errors.Join(f.Reopen(), do(f, "A")); err != nil {
			t.Error(err)
		}
		if _, err := Open(name); !errors.Is(err, ErrInUse) {
			t.Error("it is not locked:", err)
		}
		if data, _ := os.ReadFile(name); string(data) != want {
			t.Errorf("it holds %q, want %q", data, want)
		}
		os.Remove(name)
	}
	f.Close()
}

// A file that is opened as it is can be in use, and ends where it ended then.
func TestOpenAsItIs(t *testing.T) {
	_, f := openTest(t, "one\ntail")
	r, err := OpenAsItIs(f.name)
	if err = errors.Join(err, edit(f.name, "one\ntail and more", 2)); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); string(data) != "one\ntail" || errors.Join(err, r.Close()) != nil || r.Close() == nil {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := OpenAsItIs(f.name + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Error("there is no file:", err)
	}
}

// A file is opened once at a time, by anybody. What is in use, or is no file, or cannot be one, is an error that names it,
// and nothing stays open after that.
func TestOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes forgotten files
	handles := func() int {
		open, _ := os.ReadDir("/proc/self/fd") // elsewhere than on Linux there is none
		return len(open)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "new")
	Open(os.DevNull) // the first one makes the runtime open files of its own
	before := handles()
	for range 2 {
		f, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for bad, why := range map[string]string{name: "", dir: "", filepath.Join(dir, "none", "lines"): "", os.DevNull: " is not a regular file"} {
			_, err := Open(bad)
			if err == nil || !strings.Contains(err.Error(), bad+why) || errors.Is(err, ErrInUse) != (bad == name) {
				t.Errorf("%s: %v", bad, err)
			}
		}
		if err := f.Close(); err != nil || handles() != before {
			t.Errorf("%v; %d files are open, %d were", err, handles(), before)
		}
	}
}

// Open reads the tail and a block at most, wherever the last newline is and however long the file.
func TestOpenReadsTheEnd(t *testing.T) {
	const block = 64 << 10
	for _, whole := range []int{0, 1, 5, block - 1, block, block + 1, 9 * block} {
		for _, tail := range []int{0, 1, block - 1, block, block + 1, 3 * block} {
			d, f := openTest(t, strings.Repeat("\n", whole)+strings.Repeat("x", tail))
			if f.whole != int64(whole) || f.TailSize() != int64(tail) || d.reads > int64(tail+block) {
				t.Errorf("of %d + %d bytes, %d are whole lines, and %d were read", whole, tail, f.whole, d.reads)
			}
		}
	}
	if _, err := wholeLines(strings.NewReader("one"), 4); !errors.Is(err, io.EOF) {
		t.Error("a file that was cut meanwhile:", err)
	}
	d, f := openTest(t, "")
	d.broken = "stat"
	if _, err := open(f.name, d); !errors.Is(err, errDisk) || f.Close() == nil {
		t.Error("a file that cannot be looked at stays open:", err)
	}
}

// The file of the empty name takes lines and keeps none.
func TestNowhere(t *testing.T) {
	f, err := Open("")
	if err = errors.Join(err, do(f, "AKC")); err != nil || f.TailSize() != 0 {
		t.Error(err)
	}
	if whole, tail := read(t, f.Lines(5)); whole+tail != "" || f.Append([]byte("\n")) == nil || f.Close() != nil {
		t.Errorf("it reads as %q and %q", whole, tail)
	}
}

// A line or a tail may be as long as was said, and not a byte longer; the rest is not even read. An error names the line.
func TestLongLines(t *testing.T) {
	for _, most := range []int{0, 5, MaxLine, 3 * MaxLine} {
		x := strings.Repeat("x", most)
		if whole, tail := read(t, NewLines(strings.NewReader(x+"\n"+x), most)); whole != x+"\n" || tail != x {
			t.Errorf("two of %d bytes are read as %d and %d", most, len(whole), len(tail))
		}
		for _, over := range []string{"x", "x\nb", strings.Repeat("x", 9*MaxLine)} {
			in := strings.NewReader("\n" + x + over)
			l := NewLines(in, most)
			for l.Scan() {
			}
			want := fmt.Sprintf("line 2: it is longer than %d bytes", most)
			if fmt.Sprint(l.Err()) != want || in.Len() < len(over)-5*MaxLine {
				t.Errorf("%d + %d bytes: %v, and all but %d were read", most, len(over), l.Err(), in.Len())
			}
		}
	}
	l := NewLines(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(errDisk)), 5)
	if !l.Scan() || l.Scan() || !errors.Is(l.Err(), errDisk) || !strings.HasPrefix(l.Err().Error(), "line 2: ") {
		t.Error(l.Err())
	}
	l = NewLines(strings.NewReader("a\ntail"), 9)
	l.Scan()
	buffer := l.Bytes()[:6:6]
	l.Scan()
	if clear(buffer); string(l.Tail()) != "tail" {
		t.Errorf("the tail shares the reader's buffer: %q", l.Tail())
	}
}

// FuzzLines: whatever the file holds and however it is read, its lines and tail are read up to the first that is too long.
func FuzzLines(f *testing.F) {
	f.Add("a\n\nb", 5)
	f.Add("123\n1234\n", 3)
	f.Fuzz(func(t *testing.T, data string, most int) {
		most = max(0, most%100)
		var want, got string
		long := false
		for line := range strings.Lines(data) {
			if long = len(strings.TrimSuffix(line, "\n")) > most; long {
				break
			}
			want += line
		}
		l := NewLines(iotest.HalfReader(strings.NewReader(data)), most)
		for l.Scan() {
			got += l.Text() + "\n"
		}
		got += string(l.Tail())
		if got != want || l.Number() != strings.Count(want, "\n") || long != (l.Err() != nil) {
			t.Errorf("%q, at most %d: %d lines, %q, %v", data, most, l.Number(), got, l.Err())
		}
	})
}

// A value has one spelling in a file.
func TestDecode(t *testing.T) {
	type line struct {
		Index, BPM int
		Notes      []string
	}
	const good = `{"Index":-1,"BPM":2147483647,"Notes":["a\u003cb"]}`
	var v line
	if err := Decode([]byte(good), &v); err != nil || v.Index != -1 || v.BPM != 2147483647 || v.Notes[0] != "a<b" {
		t.Errorf("%s is read as %v, %v", good, v, err)
	}
	const plain = `it should be {"Index":1,"BPM":2,"Notes":null}`
	over := strconv.FormatUint(math.MaxInt+1, 10) // which a build for 64 bits writes, and one for 32 bits cannot read
	noInt := fmt.Sprintf(" is no whole number of at most %d bits, which is what this build of the program takes", strconv.IntSize)
	for bad, why := range map[string]string{
		`{"Index": 1,"BPM":2,"Notes":null}`:            plain,
		`{"Index":1,"BPM":2,"Notes":null} `:            plain,
		`{"index":1,"BPM":2,"Notes":null}`:             plain,
		`{"BPM":2,"Index":1,"Notes":null}`:             plain,
		`{"Index":1,"BPM":2}`:                          plain,
		`{"Index":1,"BPM":2,"BPM":2,"Notes":null}`:     plain,
		`{"Index":1,"BPM":2,"Notes":null,"More":3}`:    plain,
		`{"Index":1,"BPM":-0,"Notes":["\u0061"]}`:      `it should be {"Index":1,"BPM":0,"Notes":["a"]}`,
		"{\"Index\":1,\"BPM\":0,\"Notes\":[\"\xff\"]}": `it should be {"Index":1,"BPM":0,"Notes":["�"]}`,
		``:              "unexpected end of JSON input",
		`{}{}`:          "invalid character '{' after top-level value",
		`{"Notes":[1]}`: "json: cannot unmarshal number into Go struct field line.Notes of type string",
		`{"Index":1,"BPM":` + over + `,"Notes":null}`: "BPM: the number " + over + noInt,
		`{"Index":1,"BPM":7.5,"Notes":null}`:          "BPM: the number 7.5" + noInt,
	} {
		if err := Decode([]byte(bad), new(line)); err == nil || err.Error() != "bad JSON: "+why {
			t.Errorf("of %s it says: %v; want: %s", bad, err, why)
		}
	}
}
