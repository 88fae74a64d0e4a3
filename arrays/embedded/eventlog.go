package embedded

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// keptEvents is how many events are kept, in memory and in each of the two
// files of the log.
const keptEvents = 4096

const eventsFile = "events.log" // in the state directory

// maxEventLog bounds what is read of one file.
const maxEventLog = 64 << 20

// eventLog is a log of events in two files: when the newer one is full it
// takes the older one's place. Each event is a line:
//
//	1 crc32c=1a2b3c4d {"seq":1, ... }
//
// Nothing is synced: a log that made the disk work whenever something goes
// wrong would make that worse. A line that a power cut took or tore is left
// out. What can't be written is lost here and goes to the logger all the same.
type eventLog struct {
	fs     disk.FS
	path   string
	logger *slog.Logger

	f      disk.File
	off    int64
	lines  int
	failed bool
}

// openEventLog reads the events that are there, oldest first, and opens the log
// for more.
func openEventLog(fs disk.FS, path string, logger *slog.Logger) (*eventLog, []Event, error) {
	l := &eventLog{fs: fs, path: path, logger: logger}
	older, _, err := readEvents(fs, path+".1")
	if err != nil {
		return nil, nil, err
	}
	newer, size, err := readEvents(fs, path)
	if err != nil {
		return nil, nil, err
	}
	if l.f, err = fs.OpenFile(path, os.O_RDWR|os.O_CREATE); err != nil {
		return nil, nil, err
	}
	l.off, l.lines = size, len(newer)
	all := append(older, newer...)
	return l, all[max(0, len(all)-keptEvents):], nil
}

// readEvents reads one file. size is where the next line goes: a line of its
// own, whatever a power cut left before.
func readEvents(fs disk.FS, path string) (es []Event, size int64, err error) {
	b, err := disk.ReadFile(fs, path, maxEventLog)
	if isNotExist(err) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	for line := range bytes.Lines(b) {
		if e, ok := decodeEvent(line); ok && (len(es) == 0 || e.Seq > es[len(es)-1].Seq) {
			es = append(es, e)
		}
	}
	return es, int64(len(b)), nil
}

func encodeEvent(e Event) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "1 crc32c=%08x %s\n", crc32.Checksum(body, castagnoli), body), nil
}

func decodeEvent(line []byte) (e Event, ok bool) {
	const head = len("1 crc32c=00000000 ")
	if len(line) < head+1 || line[len(line)-1] != '\n' {
		return e, false
	}
	body := line[head : len(line)-1]
	if string(line[:head]) != fmt.Sprintf("1 crc32c=%08x ", crc32.Checksum(body, castagnoli)) {
		return e, false
	}
	return e, json.Unmarshal(body, &e) == nil
}

func (l *eventLog) append(es []Event) {
	var buf []byte
	for _, e := range es {
		line, err := encodeEvent(e)
		if err != nil {
			l.fail(err)
			continue
		}
		buf = append(buf, line...)
	}
	if l.lines >= keptEvents {
		if err := l.turn(); err != nil {
			l.fail(err)
			return
		}
	}
	if l.off > 0 { // ends what a power cut or a full disk left of a line
		buf = append([]byte{'\n'}, buf...)
	}
	if _, err := l.f.WriteAt(buf, l.off); err != nil {
		l.fail(err)
		return
	}
	l.failed = false
	l.off += int64(len(buf))
	l.lines += len(es)
}

// turn makes the newer file the older one and begins a new one.
func (l *eventLog) turn() error {
	err := errors.Join(l.f.Close(), l.fs.Rename(l.path, l.path+".1"))
	f, oerr := l.fs.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	l.f, l.off, l.lines = f, 0, 0
	return err
}

// fail tells the logger once that events are not kept.
func (l *eventLog) fail(err error) {
	if !l.failed {
		l.logger.Warn("events can't be written to their log", "file", l.path, "error", err)
	}
	l.failed = true
}

func (l *eventLog) close() { l.f.Close() }
