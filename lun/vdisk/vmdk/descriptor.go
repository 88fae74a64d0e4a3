package vmdk

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

const (
	format = "vmdk"
	sector = 512

	maxDescriptor = 1 << 20
	maxExtents    = 4096
	maxSize       = 64 << 40

	noParent = 0xffffffff // parentCID
)

// descriptor is the text that describes a disk.
type descriptor struct {
	at         int64 // where the text begins
	cidAt      int64 // where the digits of CID are
	cidLen     int
	cid        uint32
	parentCID  uint32
	createType string
	parentHint string
	extents    []extentLine
}

// extentLine is a line "RW 4192256 SPARSE "disk-s001.vmdk" 0".
type extentLine struct {
	at       int64
	readOnly bool
	size     int64 // bytes
	kind     string
	file     string
	off      int64 // bytes, of a flat extent
}

// isDescriptor reports whether a text is a descriptor: its first line that is
// neither empty nor a comment gives the version.
func isDescriptor(b []byte) bool {
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		return bytes.HasPrefix(line, []byte("version=")) || bytes.HasPrefix(line, []byte("version ="))
	}
	return false
}

// parseDescriptor reads a descriptor that begins at byte at of its file.
func parseDescriptor(b []byte, at int64) (*descriptor, error) {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	d := &descriptor{at: at, parentCID: noParent}
	seen := make(map[string]bool)
	for pos := 0; pos < len(b); {
		line := b[pos:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i]
		}
		where := at + int64(pos)
		pos += len(line) + 1
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		if access, _, ok := strings.Cut(text, " "); ok && (access == "RW" || access == "RDONLY" || access == "NOACCESS") {
			e, err := parseExtent(text, where)
			if err != nil {
				return nil, err
			}
			if d.extents = append(d.extents, e); len(d.extents) > maxExtents {
				return nil, damaged(where, "extent", nil, "no disk of more than %d extents is read", maxExtents)
			}
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"`)
		switch {
		case !ok:
			return nil, damaged(where, "descriptor", text, "is neither an extent nor a setting")
		case seen[key]:
			return nil, damaged(where, key, value, "is set twice")
		case strings.HasPrefix(key, "ddb."):
			continue
		}
		seen[key] = true
		if err := d.set(key, value, where); err != nil {
			return nil, err
		}
		if key == "CID" {
			d.cidAt, d.cidLen = where+int64(bytes.LastIndex(line, []byte(value))), len(value)
		}
	}
	switch {
	case !seen["version"] || !seen["CID"]:
		return nil, damaged(at, "descriptor", nil, "the version or the CID is missing")
	case len(d.extents) == 0:
		return nil, damaged(at, "extent", nil, "the descriptor lists no extents")
	}
	return d, nil
}

func (d *descriptor) set(key, value string, where int64) error {
	switch key {
	case "version":
		if v, err := strconv.Atoi(value); err != nil || v < 1 || v > 4 {
			return damaged(where, key, value, "only versions 1 to 4 are known")
		}
	case "CID", "parentCID":
		v, err := strconv.ParseUint(value, 16, 32)
		if err != nil {
			return damaged(where, key, value, "must have up to 8 hexadecimal digits")
		}
		if key == "CID" {
			d.cid = uint32(v)
		} else {
			d.parentCID = uint32(v)
		}
	case "createType":
		d.createType = value
	case "parentFileNameHint":
		d.parentHint = value
	}
	return nil
}

func parseExtent(text string, where int64) (extentLine, error) {
	e := extentLine{at: where}
	fail := func(field string, v any, reason string, args ...any) (extentLine, error) {
		return e, damaged(where, field, v, reason, args...)
	}
	head, quoted, named := strings.Cut(text, `"`)
	f := strings.Fields(head)
	if len(f) != 3 {
		return fail("extent", text, "must have access, size and type")
	}
	switch f[0] {
	case "RDONLY":
		e.readOnly = true
	case "NOACCESS":
		return fail("access", f[0], "the extent can't be read")
	}
	size, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil || size == 0 || size > maxSize/sector {
		return fail("size", f[1], "must be a number of sectors, and at most %d", int64(maxSize/sector))
	}
	e.size, e.kind = int64(size)*sector, f[2]
	switch e.kind {
	case "FLAT", "VMFS", "SPARSE", "VMFSSPARSE":
	case "ZERO":
		return e, nil
	default:
		return fail("type", e.kind, "extents of this type are not read")
	}
	file, rest, ok := strings.Cut(quoted, `"`)
	if !named || !ok || file == "" {
		return fail("extent", text, "must name a file")
	}
	e.file = file
	if rest = strings.TrimSpace(rest); rest != "" && (e.kind == "FLAT" || e.kind == "VMFS") {
		off, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
		if err != nil || off > maxSize/sector {
			return fail("offset", rest, "must be a number of sectors")
		}
		e.off = int64(off) * sector
	}
	return e, nil
}

func damaged(off int64, field string, value any, reason string, args ...any) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: value, Reason: fmt.Sprintf(reason, args...)}
}
