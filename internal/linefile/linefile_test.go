package linefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

var errDisk = errors.New("the disk is broken") // what a testDisk fails with

// testDisk is a file, or a folder, on which calls fail if a test says so.
type testDisk struct {
	*os.File
	full                  int64 // it takes no byte from this offset on; 0: it takes all
	noSync, noCut         error
	noStat                error
	meanwhile             func() // happens while it is synced
	synced                string // what it held at the last sync
	reads                 int64  // in bytes
	writes, closes, syncs int
}

// openTest opens name on a disk on which nothing fails yet.
func openTest(t *testing.T, name string) (*testDisk, *File) {
	t.Helper()
	file, err := openLocked(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	d := &testDisk{File: file}
	f, err := open(name, d, &testDisk{})
	if err != nil {
		t.Fatal(err)
	}
	return d, f
}

// wrote moves the file's time of change on, as a slower test would.
func (d *testDisk) wrote() {
	d.writes++
	os.Chtimes(d.Name(), time.Time{}, time.Unix(int64(d.writes), 0))
}

func (d *testDisk) ReadAt(p []byte, at int64) (int, error) {
	d.reads += int64(len(p))
	return d.File.ReadAt(p, at)
}

func (d *testDisk) WriteAt(p []byte, at int64) (int, error) {
	defer d.wrote()
	if d.full == 0 || at+int64(len(p)) <= d.full {
		return d.File.WriteAt(p, at)
	}
	n, _ := d.File.WriteAt(p[:max(0, d.full-at)], at)
	return n, errDisk
}

func (d *testDisk) Truncate(size int64) error {
	if d.noCut != nil {
		return d.noCut
	}
	defer d.wrote()
	return d.File.Truncate(size)
}

func (d *testDisk) Sync() error {
	if d.syncs++; d.meanwhile != nil {
		d.meanwhile()
	}
	if d.noSync == nil && d.File != nil {
		data, _ := os.ReadFile(d.Name())
		d.synced = string(data)
	}
	return d.noSync
}

func (d *testDisk) Stat() (os.FileInfo, error) {
	if d.noStat != nil {
		return nil, d.noStat
	}
	return d.File.Stat()
}

func (d *testDisk) Close() error {
	d.closes++
	return nil
}

// file makes a file of that content and returns its name.
func file(t *testing.T, content string) string {
	name := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// holds complains if the file does not hold want.
func holds(t *testing.T, name, want string) {
	t.Helper()
	if data, err := os.ReadFile(name); err != nil || string(data) != want {
		t.Errorf("the file holds %q, want %q; %v", data, want, err)
	}
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
	for _, step := range steps {
		switch step {
		case 'A':
			err = errors.Join(err, f.Append([]byte("new")))
		case 'K':
			err = errors.Join(err, f.KeepTail())
		case 'C':
			err = errors.Join(err, f.CutTail())
		}
	}
	return err
}

// A file cut at any byte, as by a crash, has whole lines and a tail, and goes on as its owner decides.
func TestCutAnywhere(t *testing.T) {
	const content = "one\n\nthree\nfour\n"
	for at := range len(content) + 1 {
		whole := content[:strings.LastIndex(content[:at], "\n")+1]
		tail := content[len(whole):at]
		kept := whole
		if tail != "" {
			kept += tail + "\n"
		}
		for steps, want := range map[string]string{
			"": whole + tail, "A": whole + "new\n", "K": kept, "C": whole,
			"KA": kept + "new\n", "CKA": whole + "new\n", "AKCA": whole + "new\nnew\n",
		} {
			name := file(t, content[:at])
			d, f := openTest(t, name)
			if got, rest := read(t, f.Lines(5)); got != whole || rest != tail || f.TailSize() != int64(len(tail)) {
				t.Errorf("cut at %d: it reads as %q and %q, tail size %d", at, got, rest, f.TailSize())
			}
			if err := do(f, steps); err != nil {
				t.Error(err)
			}
			holds(t, name, want)
			if d.writes > 0 && d.synced != want {
				t.Errorf("cut at %d, then %s: synced is only %q", at, steps, d.synced)
			}
			if got, rest := read(t, f.Lines(5)); got+rest != want || steps != "" && f.TailSize() != 0 {
				t.Errorf("cut at %d, then %s: it reads as %q and %q, tail size %d", at, steps, got, rest, f.TailSize())
			}
		}
	}
}

// Whatever fails, at whatever byte, it is said, and the file is as before: at the latest when it can be.
func TestBrokenDisk(t *testing.T) {
	for full := int64(4); full < 10; full++ {
		for broken := range 8 { // each combination of what else fails
			fault := func(bit int) error {
				if broken&bit == 0 {
					return nil
				}
				return errDisk
			}
			for _, c := range []struct{ step, before, after string }{
				{"A", "one\n", "one\nnew\n"},
				{"K", "one\nnew", "one\nnew\n"},
			} {
				t.Run(fmt.Sprintf("%s full at %d and %b", c.step, full, broken), func(t *testing.T) {
					name := file(t, c.before)
					d, f := openTest(t, name)
					d.full, d.noSync, d.noCut, d.noStat = full, fault(1), fault(2), fault(4)
					if err := do(f, c.step); (err == nil) != (full >= 8 && broken&5 == 0) {
						t.Fatal(err)
					} else if err == nil {
						return
					}
					if broken&2 == 0 {
						holds(t, name, c.before)
					}
					if now, _ := os.ReadFile(name); broken&4 == 0 && f.TailSize() != int64(len(now)-4) {
						t.Errorf("of %q the tail size is %d", now, f.TailSize())
					}
					d.full, d.noSync, d.noCut, d.noStat = 0, nil, nil, nil
					if err := do(f, c.step); err != nil || d.synced != c.after {
						t.Errorf("mended: %v, and it holds %q", err, d.synced)
					}
				})
			}
		}
	}
}

// The remains of a line that could not be kept are a tail to be cut, not to be kept.
func TestRemains(t *testing.T) {
	name := file(t, "one\n")
	d, f := openTest(t, name)
	d.full, d.noCut = 6, errDisk
	err := f.Append([]byte("two"))
	if !errors.Is(err, errDisk) || f.TailSize() != 2 || f.KeepTail() != nil || f.CutTail() == nil {
		t.Error(err, f.TailSize())
	}
	if whole, tail := read(t, f.Lines(5)); whole != "one\n" || tail != "" {
		t.Errorf("it reads as %q and %q", whole, tail)
	}
	d.noCut = nil
	if err := f.CutTail(); err != nil || f.TailSize() != 0 || d.synced != "one\n" {
		t.Error(err, f.TailSize(), d.synced)
	}
}

// A failure loses nothing: neither a tail that could not be cut, nor the sight of what others did meanwhile.
func TestNothingLost(t *testing.T) {
	d, f := openTest(t, file(t, "one\ntail"))
	d.noCut = errDisk
	if f.CutTail() == nil || f.Append([]byte("two")) == nil || f.KeepTail() != nil || d.synced != "one\ntail\n" {
		t.Errorf("a tail that could not be cut: %q", d.synced)
	}
	d.full, d.noStat = 12, errDisk // nobody sees what is left
	f.Append([]byte("two"))
	d.noCut, d.noStat = nil, nil
	os.Truncate(d.Name(), 6)
	if err := f.Append([]byte("two")); !errors.Is(err, ErrChanged) {
		t.Error("somebody else has cut whole lines:", err)
	}
	holds(t, d.Name(), "one\nta")
}

// A file that somebody else has changed is not written to until it is as it was.
func TestChangedByOthers(t *testing.T) {
	edit := func(name, content string) error {
		before, err := os.Stat(name)
		for now := before; err == nil && now.ModTime().Equal(before.ModTime()); {
			err = os.WriteFile(name, []byte(content), 0o644)
			now, _ = os.Stat(name)
		}
		return err
	}
	move := func(name string) error { return os.Rename(name, name+".old") }
	for what, change := range map[string]func(name string) error{
		"it is gone": os.Remove,
		"gone":       move,
		"it is another file now": func(name string) error {
			info, _ := os.Stat(name)
			data, err := os.ReadFile(name)
			return errors.Join(err, move(name), os.WriteFile(name, data, 0o644), os.Chtimes(name, time.Time{}, info.ModTime()))
		},
		"it was edited":       func(name string) error { return edit(name, "one\nmine") },
		"it has 12 bytes now": func(name string) error { return edit(name, "one\ntailmine") },
		"it has 4 bytes now":  func(name string) error { return os.Truncate(name, 4) },
	} {
		for _, c := range []struct{ before, step string }{{"", "K"}, {"", "C"}, {"", "A"}, {"A", "A"}} {
			name := file(t, "one\ntail")
			d, f := openTest(t, name)
			err := errors.Join(do(f, c.before), change(name)) // either way it has 8 bytes before the change
			if err != nil {
				t.Fatal(err)
			}
			writes := d.writes
			err = do(f, c.step)
			if !errors.Is(err, ErrChanged) || !strings.HasPrefix(err.Error(), name) || !strings.HasSuffix(err.Error(), what) {
				t.Errorf("%s, then %s: %v", what, c.step, err)
			}
			if d.writes != writes {
				t.Errorf("%s, then %s wrote", what, c.step)
			}
			if os.Rename(name+".old", name) == nil && what == "gone" {
				if err := do(f, c.step); err != nil {
					t.Errorf("moved back, %s: %v", c.step, err)
				}
			}
		}
	}
}

// What others change while a line is synced does not pass for ours.
func TestChangedMeanwhile(t *testing.T) {
	name := file(t, "")
	d, f := openTest(t, name)
	d.meanwhile = func() { os.WriteFile(name, []byte("two\n"), 0o644) }
	if err := f.Append([]byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := f.Append([]byte("three")); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
}

// A file is opened once at a time, by anybody.
func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "new")
	for range 2 {
		f, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(name); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), name) {
			t.Error("opened twice:", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A new file is in its folder for good when Open returns; nothing stays open if that fails.
func TestFolder(t *testing.T) {
	for _, c := range []struct {
		folder, want error
		closes       int
	}{{nil, nil, 0}, {errDisk, errDisk, 1}, {&os.PathError{Op: "sync", Err: syscall.EINVAL}, nil, 0}} {
		file, err := os.Open(file(t, "one\n"))
		if err != nil {
			t.Fatal(err)
		}
		disk, folder := &testDisk{File: file}, &testDisk{noSync: c.folder}
		if _, err := open(file.Name(), disk, folder); !errors.Is(err, c.want) {
			t.Errorf("%v instead of %v", err, c.want)
		}
		if folder.syncs != 1 || folder.closes != 1 || disk.closes != c.closes {
			t.Errorf("%v: synced %d, closed %d times; the file %d times", c.folder, folder.syncs, folder.closes, disk.closes)
		}
		file.Close()
	}
}

// Open reads the tail and a block at most, wherever the last newline is and however long the file.
func TestOpenReadsTheEnd(t *testing.T) {
	const block = 64 << 10
	for _, whole := range []int64{0, 1, 5, block - 1, block, block + 1, 1 << 30} {
		for _, tail := range []int64{0, 1, block - 1, block, block + 1, 3 * block} {
			name := file(t, "")
			if whole > 0 {
				w, _ := os.OpenFile(name, os.O_WRONLY, 0)
				w.WriteAt([]byte{'\n'}, whole-1)
				w.Close()
			}
			os.Truncate(name, whole+tail)
			d, f := openTest(t, name)
			if f.whole != whole || f.TailSize() != tail || d.reads > tail+block {
				t.Errorf("of %d + %d bytes, %d are whole lines, and %d were read", whole, tail, f.whole, d.reads)
			}
		}
	}
	d, _ := openTest(t, file(t, "one"))
	if _, err := wholeLines(d, 4); !errors.Is(err, io.EOF) {
		t.Error("a file that was cut meanwhile:", err)
	}
}

// What is no file, or cannot be one, is an error that names it.
func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{dir, filepath.Join(dir, "none", "lines"), os.DevNull} {
		if f, err := Open(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

// The file of the empty name takes lines and keeps none.
func TestNowhere(t *testing.T) {
	f, err := Open("")
	if err = errors.Join(err, f.Append([]byte("x")), f.KeepTail(), f.CutTail()); err != nil || f.TailSize() != 0 {
		t.Error(err)
	}
	if whole, tail := read(t, f.Lines(5)); whole+tail != "" || f.Append([]byte("\n")) == nil || f.Close() != nil {
		t.Errorf("it reads as %q and %q", whole, tail)
	}
}

// A line or a tail may be as long as was said, and not a byte longer; the rest is not even read.
func TestLongLines(t *testing.T) {
	for _, most := range []int{0, 5, MaxLine, 3 * MaxLine} {
		for _, over := range []int{0, 1, 9 * MaxLine} {
			for _, rest := range []string{"", "\nb"} {
				in := strings.NewReader("\n" + strings.Repeat("x", most+over) + rest)
				l := NewLines(in, most)
				for l.Scan() {
				}
				want := fmt.Sprintf("line 2: it is longer than %d bytes", most)
				if err := l.Err(); over > 0 && (err == nil || err.Error() != want) {
					t.Errorf("%d + %d bytes: %v", most, over, err)
				} else if over == 0 && rest == "" && (err != nil || len(l.Tail()) != most) {
					t.Errorf("%d bytes: %v", most, err)
				}
				if over > 1 && in.Len() < 4*MaxLine {
					t.Errorf("%d + %d bytes: all but %d were read", most, over, in.Len())
				}
			}
		}
	}
}

// An error of reading names the line; a tail is a copy.
func TestLines(t *testing.T) {
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

// FuzzLines: lines and tail are what bytes.Split finds, whatever the file holds and however it is read.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\n\nb"), 5)
	f.Add([]byte("123\n1234\n"), 3)
	f.Fuzz(func(t *testing.T, data []byte, most int) {
		most = max(0, most%100)
		want := bytes.Split(data, []byte{'\n'})
		l := NewLines(iotest.HalfReader(bytes.NewReader(data)), most)
		for n, line := range want {
			last, long := n == len(want)-1, len(line) > most
			if more := l.Scan(); more == (last || long) || more && l.Number() != n+1 || long != (l.Err() != nil) {
				t.Fatalf("%q, at most %d, line %d: %v", data, most, n+1, l.Err())
			} else if long {
				return
			}
			got := l.Bytes()
			if last {
				got = l.Tail()
			}
			if !bytes.Equal(got, line) {
				t.Fatalf("%q, line %d was read as %q", data, n+1, got)
			}
		}
	})
}
