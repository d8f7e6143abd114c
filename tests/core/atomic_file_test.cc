// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class AtomicFileTest : public testing::Test {
 protected:
  static std::string content(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  int64_t entries() const { return std::distance(fs::directory_iterator(directory_), {}); }

  const test::TempFolder temp_;
  const fs::path directory_ = temp_.path(), target_ = directory_ / "out.bin";
};

TEST_F(AtomicFileTest, AppearsOnlyOnCommit) {
  {
    AtomicFile file(target_);
    file.write("hello ");
    file.write("world");
    EXPECT_FALSE(fs::exists(target_));
    file.commit();
    EXPECT_EQ(content(target_), "hello world");
    EXPECT_THROW(file.write("late"), Error);
    EXPECT_THROW(file.commit(), Error);
  }
  EXPECT_EQ(content(target_), "hello world");
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, WithoutCommitTheOldFileStays) {
  std::ofstream(target_) << "old";
  { AtomicFile(target_).write("new"); }
  EXPECT_EQ(content(target_), "old");
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, FlushedFilesWaitWithoutADescriptor) {
  const auto open_descriptors = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), {});
  };
  const auto before = open_descriptors();
  {
    AtomicFile kept(target_), dropped(directory_ / "other.bin");
    for (AtomicFile* file : {&kept, &dropped}) {
      file->write("whole");
      file->flush();
      EXPECT_THROW(file->write("late"), Error);
      EXPECT_THROW(file->flush(), Error);
    }
    EXPECT_EQ(open_descriptors(), before);
    EXPECT_FALSE(fs::exists(target_));
    kept.commit();
    EXPECT_EQ(content(target_), "whole");
    EXPECT_THROW(kept.commit(), Error);
  }
  EXPECT_EQ(entries(), 1);
}

TEST_F(AtomicFileTest, TwoWritersDoNotMeet) {
  AtomicFile a(target_), b(target_);
  a.write("a");
  b.write("b");
  EXPECT_NE(a.temporary(), b.temporary());
  a.commit();
  b.commit();
  EXPECT_EQ(content(target_), "b");
}

TEST_F(AtomicFileTest, FollowsALinkAndKeepsIt) {
  std::ofstream(target_) << "old";
  const fs::path link = directory_ / "link";
  fs::create_symlink("out.bin", link);
  AtomicFile file(link);
  file.write("new");
  file.commit();
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(content(target_), "new");
}

TEST_F(AtomicFileTest, RefusesTargetsThatCannotBe) {
  EXPECT_THROW(AtomicFile(directory_ / "none" / "x"), Error);
  EXPECT_THROW(AtomicFile("/dev/null"), Error);
  EXPECT_THROW(AtomicFile(directory_.string() + "/"), Error);
  EXPECT_THROW(AtomicFile{directory_}, Error);
  if (::geteuid() != 0) {
    fs::permissions(directory_, fs::perms::owner_read | fs::perms::owner_exec);
    EXPECT_THROW(AtomicFile{target_}, Error);
    fs::permissions(directory_, fs::perms::owner_all);
  }
}

TEST_F(AtomicFileTest, AFullDiskIsAnErrorAndLeavesNothing) {
  // A file size limit makes write() fail the way a full disk does: first short, then an error.
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = old;
  small.rlim_cur = 1000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    AtomicFile file(target_);
    file.write(std::string(4000, 'x'));
    file.commit();
  } catch (const Error& error) {
    message = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, HasSubstr("3000 bytes left"));
  EXPECT_EQ(entries(), 0);
}

TEST_F(AtomicFileTest, MappedFileSeesTheBytesAndRefusesTheRest) {
  std::ofstream(target_) << "abc";
  MappedFile file(target_);
  ASSERT_EQ(file.bytes().size(), 3u);
  EXPECT_EQ(file.bytes()[2], 'c');
  MappedFile moved = std::move(file);
  EXPECT_EQ(file.bytes().size(), 0u);  // NOLINT: moved-from is empty by contract
  EXPECT_EQ(moved.bytes()[0], 'a');
  // The map outlives the name.
  fs::remove(target_);
  EXPECT_EQ(moved.bytes()[1], 'b');
  std::ofstream(target_).close();
  EXPECT_TRUE(MappedFile(target_).bytes().empty());
  EXPECT_THROW(MappedFile{directory_}, Error);
  EXPECT_THROW(MappedFile{directory_ / "none"}, Error);
  ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(MappedFile{directory_ / "pipe"}, Error);
}

}  // namespace
}  // namespace lacuna
