"""mUFS beside other ways to bring one image to many hosts: see README.md in this directory."""
