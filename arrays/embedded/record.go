package embedded

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// A record is a small file that a crash never leaves half-written and that
// shows damage: a line with what it is, its version and a checksum, and JSON.
//
//	cleave catalogue 1 crc32c=1a2b3c4d
//	{ ... }
//
// The JSON is on one line: a split of a large group writes the catalogue twice,
// and indenting it took most of that. Any tool indents it for whoever reads it.
//
// maxRecord bounds what is read: a catalogue of 1,000 volumes takes 1 MiB.
const maxRecord = 256 << 20

func encodeRecord(kind string, version int, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	head := fmt.Sprintf("cleave %s %d crc32c=%08x\n", kind, version, crc32.Checksum(body, castagnoli))
	return append([]byte(head), body...), nil
}

// decodeRecord reads a record of the kind into v. Versions after newest are
// refused, and so is a field that this program does not know: to leave it out
// would lose what somebody meant. The version found is returned, so that older
// ones can be upgraded: what they lack is zero in v.
func decodeRecord(b []byte, kind string, newest int, v any) (version int, err error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	f := strings.Split(string(head[:min(len(head), 100)]), " ")
	if !ok || len(f) != 4 || f[0] != "cleave" || f[1] != kind {
		return 0, fmt.Errorf("not a %s record: its first line is %.60q", kind, head)
	}
	version, err = strconv.Atoi(f[2])
	if err != nil || version < 1 {
		return 0, fmt.Errorf("%s record: version %.20q", kind, f[2])
	}
	if version > newest {
		return 0, fmt.Errorf("%s record: version %d is newer than this program, which reads up to %d", kind, version, newest)
	}
	if want := fmt.Sprintf("crc32c=%08x", crc32.Checksum(body, castagnoli)); f[3] != want {
		return 0, fmt.Errorf("%s record: damaged: checksum is %.20q, its content's is %s", kind, f[3], want)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return 0, fmt.Errorf("%s record: %w", kind, err)
	}
	return version, nil
}
