package rbd

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// image is an image's name; Namespace may be empty.
type image struct{ pool, namespace, name string }

// snap is a snapshot's name.
type snap struct {
	image
	name string
}

const prefix = "cleave-"

// maxName bounds what is taken for a name, in bytes.
const maxName = 200

func plain(s string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '@' || r == ',' || r == ':' })
}

func parseImage(s string) (image, error) {
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if !plain(p) {
			return image{}, driver.Errorf(driver.NotFound, "%.80q is not the name of an RBD image", s)
		}
	}
	switch len(parts) {
	case 2:
		return image{pool: parts[0], name: parts[1]}, nil
	case 3:
		return image{parts[0], parts[1], parts[2]}, nil
	}
	return image{}, driver.Errorf(driver.NotFound, "%.80q is not the name of an RBD image: want pool/image", s)
}

func parseSnap(id driver.SnapshotID) (snap, error) {
	of, name, ok := strings.Cut(string(id), "@")
	i, err := parseImage(of)
	if err != nil || !ok || !plain(name) || !strings.HasPrefix(name, prefix) {
		return snap{}, driver.Errorf(driver.NotFound, "%.80q is not the name of a snapshot of Cleave's", id)
	}
	return snap{i, name}, nil
}

func (i image) String() string {
	if i.namespace == "" {
		return i.pool + "/" + i.name
	}
	return i.pool + "/" + i.namespace + "/" + i.name
}

func (i image) id() driver.VolumeID { return driver.VolumeID(i.String()) }

func (s snap) id() driver.SnapshotID { return driver.SnapshotID(s.image.String() + "@" + s.name) }

func (s snap) tag() driver.Tag { return driver.Tag(strings.TrimPrefix(s.name, prefix)) }

func (i image) at(t driver.Tag) snap { return snap{i, prefix + string(t)} }

// args name an image to the command, in a way that no name is taken for an option.
func (i image) args() []string {
	return append(i.where(), "--image="+i.name)
}

// where is the pool. An option without a value is refused.
func (i image) where() []string {
	if i.namespace == "" {
		return []string{"--pool=" + i.pool}
	}
	return []string{"--pool=" + i.pool, "--namespace=" + i.namespace}
}

func (s snap) args() []string { return append(s.image.args(), "--snap="+s.name) }

// before is the tag of the safe point of a revert to s.
func (s snap) before() driver.Tag {
	t := "before-" + string(s.tag())
	if len(t) > 63 {
		h := sha256.Sum256([]byte(t))
		t = "before-" + hex.EncodeToString(h[:20])
	}
	return driver.Tag(t)
}
