package attach

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sessionAt is the iSCSI session with a target at a portal, as "session1"; "" if
// there is none.
func sessionAt(target, portal string) string {
	host, port, err := net.SplitHostPort(portal)
	if err != nil {
		return ""
	}
	names, _ := filepath.Glob("/sys/class/iscsi_session/session*")
	for _, s := range names {
		if line(filepath.Join(s, "targetname")) != target {
			continue
		}
		conns, _ := filepath.Glob(filepath.Join(s, "device/connection*/iscsi_connection/connection*"))
		for _, c := range conns {
			if ip := net.ParseIP(line(filepath.Join(c, "persistent_address"))); ip != nil && ip.Equal(net.ParseIP(host)) &&
				line(filepath.Join(c, "persistent_port")) == port {
				return filepath.Base(s)
			}
		}
	}
	return ""
}

// hostOf is a session's SCSI host, as "host3".
func hostOf(session string) string {
	if session == "" {
		return ""
	}
	dir, err := filepath.EvalSymlinks(filepath.Join("/sys/class/iscsi_session", session, "device"))
	if err != nil {
		return ""
	}
	return filepath.Base(filepath.Dir(dir))
}

// diskOf is the disk of a session's LUN, as "/dev/sda".
func diskOf(session string, number int) string {
	if session == "" {
		return ""
	}
	disks, _ := filepath.Glob(filepath.Join("/sys/class/iscsi_session", session, "device/target*/*:*:*:*/block/*"))
	for _, d := range disks {
		scsi := filepath.Base(filepath.Dir(filepath.Dir(d)))
		if i := strings.LastIndexByte(scsi, ':'); scsi[i+1:] == strconv.Itoa(number) {
			return "/dev/" + filepath.Base(d)
		}
	}
	return ""
}

// mapOn is the multipath map that holds a disk, as "dm-0"; "" if none does.
func mapOn(disk string) string {
	if disk == "" {
		return ""
	}
	held, _ := filepath.Glob(filepath.Join("/sys/block", filepath.Base(disk), "holders/dm-*"))
	for _, h := range held {
		if strings.HasPrefix(line(filepath.Join("/sys/block", filepath.Base(h), "dm/uuid")), "mpath-") {
			return filepath.Base(h)
		}
	}
	return ""
}

// mapName is device-mapper's name of a map.
func mapName(dm string) string { return line(filepath.Join("/sys/block", dm, "dm/name")) }

// line is the one line of an attribute, "" if it can't be read.
func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
